"""Kernels of our own for the CPU, and lists of them that run without returning to Python.

Knows tensors, layers and threads. Does not know models or services.
"""

"""Precomputed embeddings: files of tensors, read without executing anything.

One file per format; `fields` recognises them. Every reader returns dense
row-major little-endian bytes whose declared size was checked against the bytes
that are there, so that no header can make us allocate more than was sent.
"""

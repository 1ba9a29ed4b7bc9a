"""A decoder on the CPU with kernels of our own: weights in panels, one program for a whole step."""

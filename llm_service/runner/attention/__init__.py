"""Attention over paged blocks, one file per backend."""

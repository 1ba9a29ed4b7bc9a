"""COMPUTE: a scheduled batch to sampled tokens. Knows no requests."""

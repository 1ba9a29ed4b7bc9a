"""COMPUTE: one scheduled batch to sampled tokens. Knows no request, no queue and no transport."""

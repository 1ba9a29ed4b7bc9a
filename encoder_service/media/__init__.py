"""From bytes to features: decoding and preprocessing in worker processes, under limits."""

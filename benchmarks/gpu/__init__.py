"""What the engine does on one GPU, against the GPU's own limits and against transformers."""

"""The LLM service: prompts and embeddings in, tokens out."""

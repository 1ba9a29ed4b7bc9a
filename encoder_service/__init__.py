"""The encoder service: media in, embeddings out."""

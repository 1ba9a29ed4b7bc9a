"""The encoder service: media in, embeddings out, over gRPC.

Knows media, the encoder half of a checkpoint and the LLM service's address. Does
not know prompts, tokens or OpenAI's API.
"""

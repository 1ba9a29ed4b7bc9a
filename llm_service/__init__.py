"""The LLM service: prompts and embeddings in, tokens out."""

import os

# The engine's process is started by a fork, and an exec right behind it: gRPC's fork
# handlers have nothing to do there, but would write a line to the log. gRPC reads this
# at its own start, which is later than this import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

"""The gateway: the OpenAI chat format in front of encoders and LLMs."""

"""What two or more of the services need: errors, rpc, tensors, families, settings."""

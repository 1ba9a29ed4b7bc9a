"""gRPC as every service uses it: servers, channels and the status table."""

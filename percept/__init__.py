"""The command line and the Python client: starts, calls and measures the services."""

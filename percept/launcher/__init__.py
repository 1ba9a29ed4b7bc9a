"""Starts the services of one machine, watches them and stops them."""

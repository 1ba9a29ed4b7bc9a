"""Speech written down: what is asked about the pieces of a recording, how they are run, what comes of it.

Used by whoever stands in front of the services: the gateway and the Python client.
"""

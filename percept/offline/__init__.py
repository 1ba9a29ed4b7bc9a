"""Files in, files out, through running services: `percept encode` and `percept generate`.

Both go on where they stopped, and lose nothing to a process that is killed.
"""

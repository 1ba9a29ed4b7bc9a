"""Teaches the bundled model's language model more, and deeper, over what its towers see and hear.

The towers do not change, so every picture, film and recording is looked at or listened to once, ahead.
"""

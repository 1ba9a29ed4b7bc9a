"""Pieces that builders of tiny checkpoints share."""

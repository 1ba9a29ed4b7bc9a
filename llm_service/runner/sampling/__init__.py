"""Logits to tokens: adjust, choose, report. Knows sequences' settings, not the model."""

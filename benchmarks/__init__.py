"""Programs that measure. Nothing here is a test."""

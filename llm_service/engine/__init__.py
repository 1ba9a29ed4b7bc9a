"""DECIDE: sequences, blocks, schedule, loop. Knows no model and needs no torch."""

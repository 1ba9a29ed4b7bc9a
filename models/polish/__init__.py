"""Makes percept-tiny of the model that hears: its language model gets deeper and is drilled.

The towers do not change, so every picture, film and recording is looked at or listened to once, ahead.
Reading order: `items` and `stock` (what there is, and what the towers make of it), `drills` and `hints`
(what is asked, and what layers in between are to know), `lessons` and `batches` (as tokens, as tensors),
`network` (the model), `plan`, `loop` and `exam` (training), `export`.
"""

"""Teaches the model that sees to hear and to watch: what it sees stays as `models.training` taught it.

The model of `models.training` becomes a Qwen2.5-Omni thinker with the same tower and the same language
model, number for number (`thinker`); ears are put beside them. Reading order: `speech`, `pool` and `beeps`
(what is heard), `recordings` (how it is spoiled), `films` (what is watched), `questions`, `lessons` and
`batches` (what is asked, as tensors), `ears`, `spelling` and `network` (the model), `plan` and `loop`
(training), `export`, `media` and `cases` (what a judge asks).
"""

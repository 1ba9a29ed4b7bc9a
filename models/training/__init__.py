"""The programs that draw percept-tiny's pictures, write its conversations, train it and judge it.

Reading order: `scenes` (what a picture shows), `drawing` (its pixels), `wordings` and `questions`
(what can be asked, and the one right answer), `conversations` (turns in a row), `vocabulary` (text to
tokens), `examples` (tensors), `network` (the model), `loop` (training), `export`, `judge`.
"""

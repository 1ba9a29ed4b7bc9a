"""The programs that draw percept-tiny's pictures, write its conversations, train it and judge it.

Reading order: `scenes` (what a picture shows), `drawing` (its pixels), `sayings`, `wordings`, `questions` and
`comparisons` (what can be asked, and the one right answer), `conversations` (turns in a row), `vocabulary`
(text to tokens), `pixels` and `examples` (tensors), `network` (the model), `plan`, `optimizers` and `loop`
(training), `export`, `cases` and `judge`.
"""

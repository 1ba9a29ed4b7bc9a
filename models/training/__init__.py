"""The programs that draw pictures, write conversations about them, and train and judge the model that sees.

Of that model `models.senses` makes one that hears and watches too, and of that `models.polish` percept-tiny.

Reading order: `scenes` (what a picture shows), `drawing` (its pixels), `sayings`, `wordings`, `questions` and
`comparisons` (what can be asked, and the one right answer), `conversations` (turns in a row), `vocabulary`
(text to tokens), `pixels` and `examples` (tensors), `network` (the model), `plan`, `optimizers`, `workers`
and `loop` (training), `export`, `cases` and `judge`.
"""

"""The many ways in which a question may be put, and how loosely a person may type it.

Knows nothing about scenes: a wording is a template whose gaps `questions` fills. `{p}` is a word for
the picture, `{s}` a word for shape and `{c}` for colour; other gaps are named by what they hold.
"""

import random

PICTURE = ("picture", "picture", "image", "image", "photo")
SHAPE = ("shape", "shape", "object", "figure")
COLOUR = ("colour", "color")

DESCRIBE = (
    "Describe the {p}.",
    "Describe this {p}.",
    "What is in the {p}?",
    "What's in the {p}?",
    "What is in this {p}?",
    "What's in this {p}?",
    "What do you see?",
    "What can you see?",
    "What do you see in the {p}?",
    "What can you see in this {p}?",
    "What is this?",
    "What does the {p} show?",
    "What is shown in the {p}?",
    "What is shown here?",
    "Tell me what is in the {p}.",
    "Can you describe the {p}?",
    "Give me a description of the {p}.",
    "Caption this {p}.",
)
COLOUR_OF = (
    "What {c} is {it}?",
    "Which {c} is {it}?",
    "What is the {c} of {it}?",
    "What's the {c} of {it}?",
    "Which {c} does {it} have?",
    "Tell me the {c} of {it}.",
    "What {c} does {it} have?",
    "Name the {c} of {it}.",
)
SHAPE_OF_COLOUR = (
    "Which {s} is {colour}?",
    "What {s} is {colour}?",
    "What is {colour}?",
    "What {s} is the {colour} one?",
    "What is the {colour} {s}?",
    "Which {s} is the {colour} one?",
    "What {s} has the {c} {colour}?",
    "What kind of {s} is the {colour} one?",
)
SHAPE_OF = (
    "What shape is {it}?",
    "Which shape is {it}?",
    "What kind of shape is {it}?",
    "Which shape does {it} have?",
    "What shape does {it} have?",
)
COUNT = (
    "How many {kinds} are there?",
    "How many {kinds} are in the {p}?",
    "How many {kinds} are there in the {p}?",
    "How many {kinds} do you see?",
    "How many {kinds} can you see?",
    "How many {kinds} does the {p} show?",
    "Count the {kinds}.",
    "Count the {kinds} in the {p}.",
    "What is the number of {kinds}?",
    "How many {kinds}?",
    "Tell me how many {kinds} there are.",
)
BESIDE = {
    "left": (
        "What is left of {it}?",
        "What is to the left of {it}?",
        "What's to the left of {it}?",
        "Which {s} is left of {it}?",
        "What do you see to the left of {it}?",
        "What is on the left of {it}?",
        "Which {s} is to the left of {it}?",
    ),
    "right": (
        "What is right of {it}?",
        "What is to the right of {it}?",
        "What's to the right of {it}?",
        "Which {s} is right of {it}?",
        "What do you see to the right of {it}?",
        "What is on the right of {it}?",
        "Which {s} is to the right of {it}?",
    ),
    "above": (
        "What is above {it}?",
        "What's above {it}?",
        "Which {s} is above {it}?",
        "What do you see above {it}?",
        "What is over {it}?",
        "Which {s} is over {it}?",
    ),
    "below": (
        "What is below {it}?",
        "What's below {it}?",
        "Which {s} is below {it}?",
        "What do you see below {it}?",
        "What is under {it}?",
        "Which {s} is under {it}?",
    ),
}
OUTERMOST = {
    "left": (
        "What is on the left?",
        "What is the leftmost {s}?",
        "Which {s} is furthest to the left?",
        "Which {s} is on the left?",
        "What's on the left?",
        "What do you see on the left?",
    ),
    "right": (
        "What is on the right?",
        "What is the rightmost {s}?",
        "Which {s} is furthest to the right?",
        "Which {s} is on the right?",
        "What's on the right?",
        "What do you see on the right?",
    ),
    "above": (
        "What is at the top?",
        "What is the topmost {s}?",
        "Which {s} is highest?",
        "Which {s} is at the top?",
        "What's at the top?",
        "What do you see at the top?",
    ),
    "below": (
        "What is at the bottom?",
        "What is the lowest {s}?",
        "Which {s} is lowest?",
        "Which {s} is at the bottom?",
        "What's at the bottom?",
        "What do you see at the bottom?",
    ),
}
WHETHER_BESIDE = {
    "left": ("Is {it} left of {other}?", "Is {it} to the left of {other}?"),
    "right": ("Is {it} right of {other}?", "Is {it} to the right of {other}?"),
    "above": ("Is {it} above {other}?", "Is {it} over {other}?"),
    "below": ("Is {it} below {other}?", "Is {it} under {other}?"),
}
PRESENCE = (
    "Is there {a_kind}?",
    "Is there {a_kind} in the {p}?",
    "Do you see {a_kind}?",
    "Can you see {a_kind}?",
    "Does the {p} show {a_kind}?",
    "Does the {p} contain {a_kind}?",
    "Is {a_kind} in the {p}?",
    "Is there {a_kind} here?",
)
NUMBER = (
    "What number is shown?",
    "Which number is shown?",
    "What number is this?",
    "What is the number?",
    "What's the number?",
    "What number do you see?",
    "Which number do you see?",
    "What number is in the {p}?",
    "What is the number in the {p}?",
    "Read the number.",
    "Read the number in the {p}.",
    "What does it say?",
    "What does the {p} say?",
    "Which number is printed?",
    "What number is printed in the {p}?",
    "Please read the number.",
)
WHETHER_COLOUR = ("Is {it} {colour}?", "Is the {c} of {it} {colour}?", "Does {it} have the {c} {colour}?")

FIRST_OR_SECOND = {0: "first", 1: "second"}
SAME_SHAPE = (
    "Do both {p}s show the same shape?",
    "Do the two {p}s show the same shape?",
    "Is the shape the same in both {p}s?",
    "Are the shapes the same?",
    "Is it the same shape in both {p}s?",
)
SAME_COLOUR = (
    "Do both {p}s show the same {c}?",
    "Is the {c} the same in both {p}s?",
    "Are the {c}s the same?",
    "Do the two shapes have the same {c}?",
    "Is it the same {c} in both {p}s?",
)
MORE_SHAPES = (
    "Which {p} has more shapes?",
    "Which {p} shows more shapes?",
    "Which {p} contains more shapes?",
    "In which {p} are there more shapes?",
    "Are there more shapes in the first or the second {p}?",
)
FEWER_SHAPES = (
    "Which {p} has fewer shapes?",
    "Which {p} shows fewer shapes?",
    "In which {p} are there fewer shapes?",
    "Are there fewer shapes in the first or the second {p}?",
)
WHICH_SHOWS = (
    "Which {p} shows {a_kind}?",
    "Which {p} has {a_kind}?",
    "Which {p} contains {a_kind}?",
    "In which {p} is there {a_kind}?",
    "In which {p} do you see {a_kind}?",
)
LARGER = (
    "Which number is larger?",
    "Which number is bigger?",
    "What is the larger number?",
    "Which of the two numbers is larger?",
)
SMALLER = (
    "Which number is smaller?",
    "What is the smaller number?",
    "Which of the two numbers is smaller?",
)
WHICH_IS_LARGER = (
    "Which {p} shows the larger number?",
    "Which {p} has the bigger number?",
    "In which {p} is the number larger?",
)
WHICH_IS_SMALLER = (
    "Which {p} shows the smaller number?",
    "Which {p} has the smaller number?",
    "In which {p} is the number smaller?",
)
DESCRIBE_ONE = (
    "What is in the {which} {p}?",
    "What's in the {which} {p}?",
    "Describe the {which} {p}.",
    "What does the {which} {p} show?",
    "What do you see in the {which} {p}?",
)
COUNT_IN_ONE = (
    "How many shapes are in the {which} {p}?",
    "How many shapes does the {which} {p} show?",
    "How many shapes are there in the {which} {p}?",
)
NUMBER_IN_ONE = (
    "What number is in the {which} {p}?",
    "Which number does the {which} {p} show?",
    "Read the number in the {which} {p}.",
)
COLOUR_IN_ONE = (
    "What {c} is the {it} in the {which} {p}?",
    "Which {c} is the {it} in the {which} {p}?",
    "What {c} does the {it} in the {which} {p} have?",
)
WHAT_ABOUT = ("What about {it}?", "And {it}?", "And what about {it}?", "How about {it}?")

TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hi there", "Good morning", "Good evening", "Hello there!"),
        "Hello! Send me a picture with shapes or numbers.",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "What's your name?"),
        "I am Percept Tiny, a small model that looks at pictures.",
    ),
    (
        ("What can you do?", "How can you help me?", "Help", "What should I ask you?", "What can I ask?"),
        "I can name, count and compare shapes and read numbers in pictures.",
    ),
    (
        ("Thanks!", "Thank you.", "Thanks", "Thank you very much!", "Thanks a lot.", "Great, thanks!"),
        "You are welcome.",
    ),
    (("Bye", "Goodbye!", "Bye!", "See you later.", "Good night"), "Goodbye!"),
    (("How are you?", "How are you doing?", "How do you do?"), "I am fine, thank you."),
)
NO_PICTURE = "Please send me a picture first."
SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "Answer questions about pictures.",
    "Be brief.",
)


def put(rng: random.Random, wordings: tuple[str, ...], **gaps: str) -> str:
    """One of the wordings with its gaps filled, typed as somebody might type it."""
    template = rng.choice(wordings)
    words = {"p": rng.choice(PICTURE), "s": rng.choice(SHAPE), "c": rng.choice(COLOUR)}
    return typed(rng, template.format(**words, **gaps))


def typed(rng: random.Random, sentence: str) -> str:
    """The sentence, at times politer, in small letters, shouted, or without its full stop."""
    roll = rng.random()
    if roll < 0.04 and not sentence.lower().startswith("please"):
        sentence = "Please " + sentence[0].lower() + sentence[1:] if sentence.endswith(".") else sentence
    elif roll < 0.07:
        sentence = sentence[:-1] + ", please" + sentence[-1] if sentence[-1] in ".?" else sentence
    elif roll < 0.10:
        sentence = rng.choice(("Hey, ", "Ok, ", "So, ", "Now, ")) + sentence[0].lower() + sentence[1:]
    roll = rng.random()
    if roll < 0.12:
        sentence = sentence.lower()
    elif roll < 0.14:
        sentence = sentence.upper()
    if rng.random() < 0.12:
        sentence = sentence.rstrip(".?!")
    return sentence

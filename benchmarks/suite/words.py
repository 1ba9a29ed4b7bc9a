"""The words that prompts of the suite are made of: each, with the space before it, is one token."""

from __future__ import annotations

import random

WORDS = tuple(
    (
        "about above across after again air all along also always among animal another answer any around "
        "ask away back bad base because become before began begin behind below best better between big "
        "bird blue boat body book both box boy bring build busy call came can car care carry cause center "
        "change check children city class clear close cold color come common complete contain could country "
        "course cover cross cry cut dark day decide deep did differ direct distance do does dog done door "
        "down draw drive dry during each early earth ease east eat end enough even ever every example eye "
        "face fact fall family far farm fast father feel feet few field figure fill final find fine fire "
        "first fish five fly follow food foot for force form found four free friend from front full game "
        "gave get girl give go gold gone good got govern great green ground group grow had half hand happen "
        "hard has have he head hear heat help her here high him his hold home horse hot hour house how"
    ).split()
)


def random_words(count: int, seed: int) -> str:
    """`count` words; the same for the same seed, and different ones for every other."""
    picked = random.Random(seed)
    return " ".join(picked.choice(WORDS) for _ in range(count))

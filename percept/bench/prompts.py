"""Prompts of a wanted length: common words in an order drawn by lot, each prompt unlike all others.

Knows words and how many tokens they make at a server. Knows no tokenizer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from percept.bench.workload import Workload

# Common and short: most tokenizers make one token of each.
_TEXT = """
able about above across act add after again age air all alone along also always among animal answer any
apple arm art ask autumn baby back bad bag ball bank base bear beautiful bed before begin behind bell
below best better big bird black blood blow blue board boat body bone book both bottom box boy bread
break bright bring brother brown build burn buy call came can car card care carry case cat catch cause
cell center chair change child city class clean clear climb close cloud coat cold color come common cook
copy corn corner cost cotton count country course cover cross crowd cry cup current cut dance dark day
dead deep desk dog door down draw dream dress drink drive drop dry dust each ear early earth east easy
eat edge egg end energy engine enough even evening ever eye face fact fall family far farm fast father
feel feet few field fight fill find fine finger finish fire first fish five flat floor flow flower fly
food foot force forest form found four free fresh friend front fruit full game garden gas gave gentle
girl give glad glass gold gone good grass gray great green ground group grow guess half hand happy hard
hat head hear heart heat heavy hill hold hole home hope horse hot hour house human ice idea inch iron
island job join joy jump just keep key kind king knew know lady lake land language last late laugh law
lay lead learn leave left leg letter level lie life lift light like line list listen little live long
look lost loud love low
"""
WORDS = tuple(_TEXT.split())
OPENING_WORDS = 3
# An odd factor only reorders the numbers below a power of two: neighbours begin with different words.
_SCATTER = 0x9E3779B1


@dataclass(frozen=True, slots=True)
class TextScale:
    """How words become tokens at one server.

    Attributes:
        template_tokens: of a prompt without words: what the chat template adds.
        tokens_per_word: of each word on average.
    """

    template_tokens: float = 0.0
    tokens_per_word: float = 1.0

    def words(self, tokens: float) -> int:
        """How many words make so many tokens, the template's not among them."""
        return max(0, round(tokens / self.tokens_per_word))


class PromptWriter:
    """Writes the text of each request of a workload."""

    def __init__(self, workload: Workload, scale: TextScale) -> None:
        self._seed = workload.seed
        wanted = scale.words(workload.prompt_tokens - scale.template_tokens)
        shared = min(wanted, scale.words(workload.repeated_prefix_tokens))
        self._prefix = words_by_lot(f"prefix {workload.seed}", shared)
        # A prompt that is not all prefix has at least the words that set it apart.
        all_shared = workload.repeated_prefix_tokens == workload.prompt_tokens
        self._own_count = 0 if all_shared else max(OPENING_WORDS, wanted - shared)

    def text(self, index: int) -> str:
        """The text of request `index`; negative ones belong to the warm-up and to probes."""
        if not self._own_count:
            return " ".join(self._prefix or WORDS[:1])
        opening = _opening(index, self._seed)
        rest = words_by_lot(f"prompt {self._seed} {index}", self._own_count - OPENING_WORDS)
        return " ".join((*self._prefix, *opening, *rest))


def words_by_lot(lot: str, count: int) -> list[str]:
    """So many words; the same for the same `lot`."""
    return random.Random(lot).choices(WORDS, k=count)


def _opening(index: int, seed: int) -> list[str]:
    """Words that no other index of a run has: the index itself, written with words for digits."""
    base = len(WORDS)
    # The largest power of two below base**3, so that the odd factor keeps numbers apart.
    span = 1 << ((base**OPENING_WORDS).bit_length() - 1)
    number = (index * _SCATTER + random.Random(f"opening {seed}").getrandbits(32)) % span
    digits = []
    for _ in range(OPENING_WORDS):
        number, digit = divmod(number, base)
        digits.append(WORDS[digit])
    return digits

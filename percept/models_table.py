"""The catalogue of families as a table: for the README and for `percept models`.

`python -m percept.models_table README.md` writes it between the page's markers,
and a test holds the page to the catalogue. Knows the facts' form; imports no family.
"""

from __future__ import annotations

import sys
from pathlib import Path

from shared.families.catalogue import CATALOGUE, FamilyFacts

BEGIN = "<!-- models: written by `make docs` from shared/families/catalogue.py -->\n"
END = "<!-- models: end -->\n"

_HEAD = ("family (`model_type`)", "checkpoints", "takes", "precomputed embeddings")


def takes(facts: FamilyFacts) -> str:
    """What a prompt may hold, for example "images, video"; singular where only one may be there."""
    plural = {"image": "images" if facts.several else "one image", "video": "video", "audio": "audio"}
    return ", ".join(plural[modality] for modality in facts.modalities)


def embeddings(facts: FamilyFacts) -> list[str]:
    """The fields of each modality, for example "image_embeds, image_grid_thw"; optional ones in brackets."""
    return [
        ", ".join([*fields.required, *(f"[{name}]" for name in fields.optional)])
        for fields in facts.embedding_fields.values()
    ]


def table() -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + " --- |" * len(_HEAD)]
    for facts in CATALOGUE:
        checkpoints = ", ".join(facts.checkpoints)
        cells = (
            f"`{facts.model_type}`",
            f"{checkpoints}. {facts.notes}" if facts.notes else checkpoints,
            takes(facts),
            "; ".join(f"`{fields}`" for fields in embeddings(facts)),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """The page with the table between its markers as the catalogue has it now.

    Raises:
        ValueError: a marker is not there.
    """
    before, rest = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    return before + table() + rest


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")

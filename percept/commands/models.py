"""`percept models`: the families that there are and what each takes.

Knows the catalogue. Asks no service: what runs says itself what it serves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from percept.models_table import embeddings, takes
from shared.families.catalogue import CATALOGUE, FamilyFacts


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")] = False,
) -> None:
    """Lists the families."""
    if as_json:
        typer.echo(json.dumps([_json_of(facts) for facts in CATALOGUE], indent=2))
        return
    for facts in CATALOGUE:
        typer.echo("\n".join(_lines(facts)))


def _json_of(facts: FamilyFacts) -> dict[str, object]:
    described = asdict(facts)
    del described["location"]
    return described


def _lines(facts: FamilyFacts) -> Iterator[str]:
    yield facts.model_type
    yield f"  checkpoints  {', '.join(facts.checkpoints)}"
    yield f"  takes        {takes(facts)}"
    for fields in embeddings(facts):
        yield f"  embeddings   {fields}"
    for settings in dict.fromkeys(facts.settings_of(modality) for modality in facts.modalities):
        if settings:
            yield f"  settings     {', '.join(settings)}"
    if facts.notes:
        yield f"  note         {facts.notes}"

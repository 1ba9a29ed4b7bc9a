"""What a service says that it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from percept.client.items import MODALITIES
from protos.llm.v1 import llm_service_pb2
from shared.families.catalogue import FamilyFacts, Modality, facts_of

_NAMES = {value: name for name, value in MODALITIES.items()}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model of the LLM service.

    Attributes:
        names: those that requests may use, the main one first.
        family: the checkpoint's `model_type`.
        max_model_len: context in tokens, prompt and answer together.
        hidden_size: width of an embedding row.
        vocabulary_size: number of token ids.
        limits: modalities that prompts may hold, and how many items of each.
        facts: what the family takes; None for a family that this version does not know.
    """

    names: tuple[str, ...]
    family: str
    max_model_len: int
    hidden_size: int
    vocabulary_size: int
    limits: Mapping[Modality, int]
    facts: FamilyFacts | None

    @classmethod
    def from_wire(cls, model: llm_service_pb2.GetModelResponse) -> ServedModel:
        """Reads the service's answer."""
        limits = {
            _NAMES[limit.modality]: limit.max_item_count
            for limit in model.modality_limits
            if limit.modality in _NAMES
        }
        return cls(
            names=tuple(model.models),
            family=model.family,
            max_model_len=model.max_model_len,
            hidden_size=model.hidden_size,
            vocabulary_size=model.vocabulary_size,
            limits=limits,
            facts=facts_of(model.family),
        )

"""What the gateway says of the model, worked out once for each description that an LLM service gives.

Knows the wire's description and the gateway's settings. Does not know who was asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.item_settings import ItemSettings
from gateway.media import NAMES
from gateway.settings import GatewaySettings
from gateway.version import VERSION
from protos.llm.v1 import llm_service_pb2
from shared.families.catalogue import FamilyFacts, facts_of
from shared.settings import ModalityName


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as clients see it.

    Attributes:
        description: what the LLM service says.
        names: what requests may call it, the main one first.
        fingerprint: names what computes the answers: equal while model and version are.
        item_limits: modalities that prompts may hold, and how many items of each.
        facts: what is known of its family without a checkpoint; None of an unknown one.
        item_settings: what items are processed with where a request says nothing about it.
    """

    description: llm_service_pb2.GetModelResponse
    names: tuple[str, ...]
    fingerprint: str
    item_limits: Mapping[ModalityName, int]
    facts: FamilyFacts | None
    item_settings: ItemSettings

    @classmethod
    def of(cls, description: llm_service_pb2.GetModelResponse, settings: GatewaySettings) -> ServedModel:
        """The model of a description, as the settings have it shown."""
        facts = facts_of(description.family)
        return cls(
            description,
            settings.served_model_name or tuple(description.models),
            _fingerprint(description),
            _item_limits(description, settings.limit_mm_per_prompt),
            facts,
            settings.item_settings.for_request(None, None, facts),
        )


def _fingerprint(model: llm_service_pb2.GetModelResponse) -> str:
    text = f"{VERSION}\n{model.family}\n{model.max_model_len}\n{model.vocabulary_size}\n{model.models}"
    return "fp_" + hashlib.sha256(text.encode()).hexdigest()[:10]


def _item_limits(
    model: llm_service_pb2.GetModelResponse, own: Mapping[ModalityName, int]
) -> dict[ModalityName, int]:
    served = {
        NAMES[limit.modality]: limit.max_item_count
        for limit in model.modality_limits
        if limit.modality in NAMES
    }
    return {modality: min(count, own.get(modality, count)) for modality, count in served.items()}

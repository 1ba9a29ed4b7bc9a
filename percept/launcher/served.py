"""What the model that is up takes, by its own word. Knows the gateway's list of models."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from percept.launcher.plan import Plan

_PATIENCE_S = 5.0


async def served_modalities(plan: Plan) -> Collection[str]:
    """The kinds of items that prompts may hold; none where the gateway does not say."""
    import httpx

    keys: tuple[str, ...] = getattr(plan.services[-1].settings, "api_key", ())
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    try:
        async with httpx.AsyncClient(timeout=_PATIENCE_S, trust_env=False) as client:
            answer = await client.get(f"{plan.url}/v1/models", headers=headers)
        first: dict[str, Any] = answer.raise_for_status().json()["data"][0]
        return frozenset(first["modalities"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return frozenset()

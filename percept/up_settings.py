"""Settings of `percept up`, and how they reach the services.

`up` takes its own settings and those of all three services, except the ones that
it decides itself: where each listens, whom it calls, how many threads it has and
what it shares with the others.
"""

from __future__ import annotations

from pydantic import Field

from percept.services import BUNDLED_MODEL, SERVICES
from shared.settings import ServiceSettings

DECIDED_BY_UP = frozenset({"listen", "encoder", "llm", "threads", "shared_cores", "shared_rows"})
"""Fields of the services that `up` fills in."""


class UpSettings(ServiceSettings):
    """What `percept up` starts, and where."""

    model: str = Field(
        BUNDLED_MODEL,
        description="Checkpoint to serve: a local folder, a hub id, or the name of the bundled model.",
    )
    host: str = Field(
        "127.0.0.1", description="Address that the gateway listens on; 0.0.0.0 opens it to the network."
    )
    port: int = Field(8000, ge=1, le=65535, description="Port that the gateway listens on.")
    encoders: int = Field(1, ge=1, le=64, description="Encoder services to start.")
    llms: int = Field(1, ge=1, le=64, description="LLM services to start.")
    encoder_threads: int | None = Field(
        None,
        ge=1,
        description="Most threads of each encoder's tower. Default: the encoders share all cores.",
    )
    llm_threads: int | None = Field(
        None,
        ge=1,
        description="Most threads of each LLM's engine. Default: the LLMs share all cores.",
    )
    start_timeout_s: float = Field(
        1800.0, gt=0, description="Longest time until all services are ready, in seconds; includes downloads."
    )


def settings_classes() -> dict[str, type[ServiceSettings]]:
    """Section name to settings class, of everything that reads settings."""
    classes: dict[str, type[ServiceSettings]] = {"up": UpSettings}
    classes.update({name: entry.settings_class() for name, entry in SERVICES.items()})
    return classes

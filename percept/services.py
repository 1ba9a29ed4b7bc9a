"""The catalogue of services: where their settings and their entry points are.

Knows names of modules, and imports one only when it is asked for: a command line
that shows its help must not wait for the services.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from shared.settings import ConfigFile, ServiceSettings, load_settings

BUNDLED_MODEL = "percept-tiny"
"""Name of the model that comes with the package."""


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """One service that `percept NAME` starts.

    Attributes:
        name: command and section name.
        package: its package, which has `settings` and `service`.
        settings_name: its settings class.
        summary: one line for the command's help.
    """

    name: str
    package: str
    settings_name: str
    summary: str

    def settings_class(self) -> type[ServiceSettings]:
        """Imports and returns the settings class."""
        return cast(
            type[ServiceSettings], getattr(import_module(f"{self.package}.settings"), self.settings_name)
        )

    def serve(self) -> Callable[[Any], Coroutine[Any, Any, None]]:
        """Imports the service and returns its `serve(settings)`."""
        return cast(
            Callable[[Any], Coroutine[Any, Any, None]], import_module(f"{self.package}.service").serve
        )


ENCODER = ServiceEntry(
    "encoder", "encoder_service", "EncoderSettings", "Start one encoder service: media in, embeddings out."
)
LLM = ServiceEntry("llm", "llm_service", "LlmSettings", "Start one LLM service: prompts in, tokens out.")
GATEWAY = ServiceEntry("gateway", "gateway", "GatewaySettings", "Start one gateway: the OpenAI API in front.")
SERVICES = {entry.name: entry for entry in (ENCODER, LLM, GATEWAY)}


def bundled_model_folder() -> Path:
    """The folder of the model that comes with the package."""
    return Path(str(files("models"))) / BUNDLED_MODEL


def resolve_model(model: str) -> str:
    """Turns the bundled model's name into its folder; leaves paths and hub ids alone."""
    if model == BUNDLED_MODEL and not Path(model).exists():
        return str(bundled_model_folder())
    return model


def load_service_settings(
    entry: ServiceEntry, flags: Mapping[str, Any], config: ConfigFile
) -> ServiceSettings:
    """Reads a service's settings; the bundled model is found, and served by its own name.

    Raises:
        SettingsError: says what is wrong.
    """
    settings_class = entry.settings_class()
    settings = load_settings(settings_class, flags, section=entry.name, config=config)
    model = getattr(settings, "model", None)
    if model is None or resolve_model(model) == model:
        return settings
    named = {} if "served_model_name" in settings.model_fields_set else {"served_model_name": model}
    found = {**flags, **named, "model": resolve_model(model)}
    return load_settings(settings_class, found, section=entry.name, config=config)

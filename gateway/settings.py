"""Settings of the gateway. Knows names, defaults and bounds; reads nothing itself."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field, ValidationError, field_validator, model_validator

from gateway.item_settings import SettingsRules, canonical
from gateway.media_io import MediaIo
from shared.errors import InvalidRequestError
from shared.rpc.addresses import checked_address
from shared.settings import (
    CommaList,
    ItemLimits,
    JsonObject,
    ListenAddress,
    ServiceSettings,
)

MIB = 1024 * 1024


class GatewaySettings(ServiceSettings):
    """How the gateway listens, whom it calls and what it refuses."""

    listen: ListenAddress = Field(
        "127.0.0.1:8000", description="HOST:PORT of the HTTP server; port 0 for any."
    )
    encoder: CommaList = Field(
        (),
        description="HOST:PORT of the encoder services, separated by commas. A name that resolves to "
        "several addresses is several replicas. Without any, only text is served.",
    )
    llm: CommaList = Field(
        ...,
        min_length=1,
        description="HOST:PORT of the LLM services, separated by commas. A name that resolves to several "
        "addresses is several replicas.",
    )
    api_key: CommaList = Field(
        (), repr=False, description="Keys that clients may use, separated by commas. None: no key is needed."
    )
    served_model_name: CommaList = Field(
        (),
        description="Names that requests may use; the first is the main one. Default: the model's own.",
    )
    allowed_local_media_path: Path | None = Field(
        None, description="Folder whose files requests may name by file:// URLs. Unset: none may be read."
    )
    allowed_media_domains: CommaList = Field(
        (), description="Host names that media may be fetched from, exactly as written. None: any."
    )
    allow_private_media: bool = Field(
        False,
        description="Also fetch media from private, loopback and link-local addresses. Whoever may send "
        "requests can then make the gateway read from your own network.",
    )
    media_fetch_timeout_s: float = Field(
        5.0, gt=0, description="Longest time to fetch one picture, redirects included, in seconds."
    )
    video_fetch_timeout_s: float = Field(
        30.0, gt=0, description="Longest time to fetch one video, redirects included, in seconds."
    )
    audio_fetch_timeout_s: float = Field(
        10.0, gt=0, description="Longest time to fetch one recording, redirects included, in seconds."
    )
    max_media_mib: float = Field(32.0, gt=0, description="Largest picture or embeddings, in MiB.")
    max_video_mib: float = Field(
        64.0, gt=0, description="Largest video, in MiB; encoder services have --max-payload-mib."
    )
    max_audio_mib: float = Field(
        64.0,
        gt=0,
        description="Largest recording, in MiB; encoder services bound its seconds and samples while they "
        "decode it (--max-audio-seconds, --max-audio-samples).",
    )
    max_request_media_mib: float = Field(
        256.0, gt=0, description="Most bytes of all media files of one request together, in MiB."
    )
    max_body_mib: float = Field(64.0, gt=0, description="Largest request body, in MiB.")
    limit_mm_per_prompt: ItemLimits = Field(
        default_factory=dict,
        description='How many items of a modality one prompt may hold, for example "image=4". '
        "Default: what the LLM service says.",
    )
    mm_processor_kwargs: JsonObject = Field(
        "",
        description='Processor settings of all items, a JSON object, for example {"num_crops": 4}. A name '
        'goes to the modalities of the model that take it; under "image" or "video" to that one alone.',
    )
    trust_request_mm_kwargs: bool = Field(
        False,
        description="Also take mm_processor_kwargs from requests, which go before the server's.",
    )
    media_io_kwargs: JsonObject = Field(
        "",
        description='Which frames of videos are taken, a JSON object: {"video": {"num_frames": 16}}, or '
        "fps in the place of num_frames or beside it; -1 takes all. Requests may have their own. Default: "
        "the checkpoint's rate where it has one (do_sample_frames and fps), else 32 frames.",
    )
    request_timeout_s: float | None = Field(
        None, gt=0, description="Deadline of a whole request, in seconds. Default: --default-deadline-s."
    )
    max_held_mib: float = Field(
        1024.0,
        gt=0,
        description="Most bytes that all requests together hold at once, in MiB: their bodies and their "
        "media files, decoded or fetched. A request that needs more gets 429. Parsing and sending on take "
        "memory beyond it, for the requests that are at it.",
    )
    client_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Longest time that a client may take nothing of its answer, in seconds; then its "
        "connection is closed.",
    )
    max_parallel_pieces: int = Field(
        8,
        ge=1,
        description="Pieces of one long recording that are transcribed at once; the others wait.",
    )
    max_concurrent_requests: int = Field(
        512,
        ge=1,
        description="Requests worked on at once. Further ones get 429 at once instead of a place in a queue "
        "that their client may not have the patience for.",
    )

    @model_validator(mode="after")
    def _check_folder(self) -> GatewaySettings:
        folder = self.allowed_local_media_path
        if folder is not None and not folder.is_dir():
            raise ValueError(f"allowed_local_media_path: {folder} is no folder")
        return self

    @field_validator("media_io_kwargs")
    @classmethod
    def _check_media_io(cls, text: str) -> str:
        try:
            MediaIo.model_validate_json(text or "{}")
        except ValidationError as error:
            mistake = error.errors(include_url=False, include_input=False)[0]
            path = ".".join(str(step) for step in mistake["loc"])
            raise ValueError(f"{path}: {mistake['msg']}") from None
        return text

    @field_validator("mm_processor_kwargs")
    @classmethod
    def _check_length(cls, text: str) -> str:
        try:
            canonical(json.loads(text or "{}"))
        except InvalidRequestError as error:
            raise ValueError(error.message) from None
        return text

    @field_validator("encoder", "llm")
    @classmethod
    def _check_targets(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked_address(address, lowest_port=1) for address in addresses)

    @property
    def deadline_s(self) -> float:
        """Seconds that a whole request may take."""
        return self.default_deadline_s if self.request_timeout_s is None else self.request_timeout_s

    @property
    def max_media_byte_count(self) -> int:
        return int(self.max_media_mib * MIB)

    @property
    def max_video_byte_count(self) -> int:
        return int(self.max_video_mib * MIB)

    @property
    def max_audio_byte_count(self) -> int:
        return int(self.max_audio_mib * MIB)

    @property
    def item_settings(self) -> SettingsRules:
        """What items are processed with."""
        media_io = MediaIo.model_validate_json(self.media_io_kwargs or "{}")
        return SettingsRules(
            processor=json.loads(self.mm_processor_kwargs or "{}"),
            video=media_io.video_values(),
            allowed=self.trust_request_mm_kwargs,
        )

    @property
    def max_request_media_byte_count(self) -> int:
        return int(self.max_request_media_mib * MIB)

    @property
    def max_held_byte_count(self) -> int:
        return int(self.max_held_mib * MIB)

    @property
    def max_body_byte_count(self) -> int:
        return int(self.max_body_mib * MIB)

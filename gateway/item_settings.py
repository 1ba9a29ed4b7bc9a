"""The settings of a request's items: the server's own, and what the request asks for.

`mm_processor_kwargs` is for the family's processor, `media_io_kwargs` for the
decoding of videos. A name of the former goes to every item of a modality that
takes it, by the family's entry in the catalogue; under "image", "video" or "audio"
it goes to that modality alone. What the request says goes before what the server says.

Settings become part of an item's key as canonical JSON, and the defaults are no
text at all, so that equal items have equal keys. Knows names; does not know what
the values mean: the family checks them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from shared.errors import InvalidRequestError
from shared.families.catalogue import FamilyFacts
from shared.settings import ModalityName

PROCESSOR_FIELD = "mm_processor_kwargs"
MEDIA_IO_FIELD = "media_io_kwargs"

_MEDIA_IO = "media_io"
_MAX_LENGTH = 4096
_MODALITIES: tuple[ModalityName, ...] = get_args(ModalityName)

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ItemSettings:
    """What the items of one request are processed with.

    Attributes:
        texts: canonical JSON by modality; a modality that is not in it has "".
        audio_beside_pictures: that of a recording in a prompt with pictures; None: the same.
        frame_rate: frames per second that a list of frames is said to have.
        frame_list_text: the text of a list of frames, whose rate is no rule for sampling.
        from_request: fields by which the request asked for some of it.
    """

    texts: Mapping[ModalityName, str] = field(default_factory=dict)
    frame_rate: float | None = None
    frame_list_text: str = ""
    from_request: frozenset[str] = frozenset()
    audio_beside_pictures: str | None = None

    def among(self, modalities: Collection[ModalityName]) -> ItemSettings:
        """The settings of items in a prompt that holds such items."""
        if self.audio_beside_pictures is None or "image" not in modalities:
            return self
        return replace(self, texts={**self.texts, "audio": self.audio_beside_pictures})


@dataclass(frozen=True, slots=True)
class SettingsRules:
    """The server's side.

    Attributes:
        processor: its default `mm_processor_kwargs`.
        video: its default for the decoding of videos: `num_frames`, `fps`.
        allowed: whether requests may have `mm_processor_kwargs` of their own.
    """

    processor: Values = field(default_factory=dict)
    video: Values = field(default_factory=dict)
    allowed: bool = False

    def for_request(
        self, processor: Values | None, video: Values | None, facts: FamilyFacts | None
    ) -> ItemSettings:
        """Settles the settings of one request.

        Args:
            processor: the request's `mm_processor_kwargs`.
            video: the request's `media_io_kwargs` for videos.
            facts: of the served family; without, every name goes to every item.

        Raises:
            InvalidRequestError: settings that the server or the model does not take;
                `param` is the setting's path.
        """
        if processor:
            self._check(processor, facts)
        own, asked = by_modality(self.processor, facts), by_modality(processor or {}, facts)
        merged = {modality: {**own[modality], **asked[modality]} for modality in _MODALITIES}
        media_io = dict(video or self.video)
        rate = media_io.get("fps")
        listed = {name: value for name, value in media_io.items() if name != "fps"}
        if rate is not None and "num_frames" not in listed:
            listed["num_frames"] = -1
        texts = {modality: canonical(merged[modality]) for modality in _MODALITIES}
        return ItemSettings(
            texts={**texts, "video": canonical(merged["video"] | _media_io(media_io))},
            frame_rate=rate,
            frame_list_text=canonical(merged["video"] | _media_io(listed)),
            from_request=frozenset(
                name for name, said in ((PROCESSOR_FIELD, processor), (MEDIA_IO_FIELD, video)) if said
            ),
            audio_beside_pictures=_beside_pictures(merged["audio"], facts),
        )

    def _check(self, processor: Values, facts: FamilyFacts | None) -> None:
        if not self.allowed:
            raise InvalidRequestError(
                "The server takes no processor settings from requests; "
                "start the gateway with --trust-request-mm-kwargs if it should.",
                param=PROCESSOR_FIELD,
                code="unsupported_parameter",
            )
        for name, known in unknown_names(processor, facts):
            raise InvalidRequestError(
                f"'{name[:64]}' is no processor setting of this model; "
                + (f"there are: {', '.join(known)}." if known else "it has none."),
                param=f"{PROCESSOR_FIELD}.{name[:64]}",
            )


def unknown_names(processor: Values, facts: FamilyFacts | None) -> Iterator[tuple[str, list[str]]]:
    """Each name that the family does not take, and those that it does."""
    if facts is None:
        return
    every = sorted({name for modality in _MODALITIES for name in facts.settings_of(modality)})
    for name, value in processor.items():
        modality = next((known for known in _MODALITIES if known == name), None)
        if modality is None:
            if name not in every:
                yield name, every
        elif isinstance(value, dict):
            own = facts.settings_of(modality)
            yield from ((f"{name}.{inner}", list(own)) for inner in value if inner not in own)
        else:
            yield name, every


def by_modality(processor: Values, facts: FamilyFacts | None) -> dict[ModalityName, dict[str, Any]]:
    """Deals names out to the modalities that take them."""
    dealt: dict[ModalityName, dict[str, Any]] = {}
    for modality in _MODALITIES:
        known = None if facts is None else facts.settings_of(modality)
        nested = processor.get(modality)
        flat = {name: value for name, value in processor.items() if name not in _MODALITIES}
        given = {**flat, **nested} if isinstance(nested, dict) else flat
        dealt[modality] = {name: value for name, value in given.items() if known is None or name in known}
    return dealt


def canonical(settings: Values) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII; "" for no settings.

    Raises:
        InvalidRequestError: they are too long or too deep.
    """
    if not settings:
        return ""
    try:
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise InvalidRequestError("The settings are no plain JSON.", param=PROCESSOR_FIELD) from None
    if len(text) > _MAX_LENGTH:
        raise InvalidRequestError(
            f"The settings are longer than {_MAX_LENGTH} characters.", param=PROCESSOR_FIELD
        )
    return text


def request_path(param: str) -> str | None:
    """The request's name for a setting that an encoder service refuses; None for anything else."""
    path = param.split(".")
    if path[:2] != ["item", "settings"]:
        return None
    if path[2:3] == [_MEDIA_IO]:
        return ".".join([MEDIA_IO_FIELD, "video", *path[3:]])
    return ".".join([PROCESSOR_FIELD, *path[2:]])


def _beside_pictures(settings: Values, facts: FamilyFacts | None) -> str | None:
    if facts is None or not facts.audio_settings_beside_pictures:
        return None
    return canonical({**facts.audio_settings_beside_pictures, **settings})


def _media_io(media_io: Values) -> dict[str, Any]:
    return {_MEDIA_IO: dict(media_io)} if media_io else {}

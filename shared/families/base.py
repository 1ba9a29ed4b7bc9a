"""What a model family is: the two halves of a checkpoint, apart.

A family file implements these protocols once for one or several `model_type`s.
The encoder service uses `Preprocessor` (in worker processes) and `Tower`; the
LLM service uses `PromptLayout` (in its front) and `LanguageModel` (in its
engine). Nobody holds both halves.

This module knows the shapes of the contract, those of `items` with it. It knows no model, and importing
it imports neither torch nor transformers, as worker processes and the LLM
service's front need neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from shared.families.items import (
    MAIN_TENSOR,
    AudioClip,
    EncodedItem,
    Features,
    Grid,
    MediaInfo,
    Modality,
    RawTensor,
    VideoClip,
)
from shared.families.spans import ExpandedPrompt, Span

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from shared.kernels.library import Team

__all__ = [
    "MAIN_TENSOR",
    "AudioClip",
    "Checkpoint",
    "EncodedItem",
    "ExpandedPrompt",
    "Family",
    "Features",
    "Grid",
    "Hears",
    "KvLayout",
    "LanguageModel",
    "MediaInfo",
    "Modality",
    "Preprocessor",
    "PromptLayout",
    "RawTensor",
    "Span",
    "StateShape",
    "StepStates",
    "Tower",
    "VideoClip",
    "WritesItems",
]


class Preprocessor(Protocol):
    """Media to features, on the CPU, without weights."""

    def preprocess_image(self, picture: Image.Image, settings: Mapping[str, Any]) -> Features:
        """Turns an RGB picture into features, with the checkpoint's own processor.

        Raises:
            BadMediaError: the picture cannot be processed (extreme aspect ratio).
            InvalidRequestError: a setting that the family does not have.
        """
        ...

    def preprocess_video(self, clip: VideoClip, settings: Mapping[str, Any]) -> Features:
        """Turns a video's frames into features. Called only where the family takes videos.

        Runs where there is no torch: it settles sizes, rows and times, and may leave
        the frames' resizing to the tower.

        Raises:
            BadMediaError: the frames cannot be processed.
            InvalidRequestError: a setting that the family does not have.
        """
        ...

    def accept_embeddings(self, modality: Modality, fields: Mapping[str, RawTensor]) -> EncodedItem:
        """Checks precomputed embeddings of one of the family's modalities and lays them out.

        Raises:
            BadEmbeddingsError: unknown or missing field, wrong rank, hidden
                size, rows (against the grid), element type, or a value that is
                not finite.
        """
        ...


@runtime_checkable
class SamplesByRate(Preprocessor, Protocol):
    """A `Preprocessor` of a family whose checkpoints may say how many frames of a second it was made for."""

    frame_rate: float | None
    """Frames a second that are taken where nobody asks for another choice; None: the service's default."""


@runtime_checkable
class Hears(Preprocessor, Protocol):
    """A `Preprocessor` of a family that takes audio."""

    sampling_rate: int
    """Samples a second of every clip that it is given."""

    most_samples: int
    """Samples of the longest clip that it hears in one go: longer recordings are cut to be written down."""

    def preprocess_audio(self, clip: AudioClip, settings: Mapping[str, Any]) -> Features:
        """Turns a recording into features, where there is no torch.

        Raises:
            BadMediaError: the recording cannot be processed (too long for the model).
            InvalidRequestError: a setting that the family does not have.
        """
        ...


class Tower(Protocol):
    """The encoder half with its weights."""

    hidden_size: int
    """Width of an output row, in elements."""

    def encode(self, batch: Sequence[Features]) -> list[dict[str, torch.Tensor]]:
        """Runs the tower on several items at once.

        Returns:
            One dict per item: named tensors (row_count, width), on the tower's
            device and in its dtype: first `MAIN_TENSOR`, then those of
            `Family.extra_widths`, in that order.
        """
        ...

    def split(self, features: Features) -> list[Features]:
        """Cuts an item into parts that can be encoded apart, a video into groups of frames.

        The rows of the parts, one after the other, are those of the whole; each part's
        `info` counts its own.

        Returns:
            The item itself where it is best encoded in one go.
        """
        ...

    def use_kernels(self, team: Team) -> bool:
        """Moves the tower's work to our CPU kernels, as far as there are any for it.

        Returns:
            Whether it was moved. Where not, the log says why and torch goes on.
        """
        ...


class PromptLayout(Protocol):
    """Placeholders and positions, without weights."""

    def placeholder_ids(self) -> Mapping[Modality, int]:
        """The token id that stands for one item of each modality in a rendered prompt."""
        ...

    def placeholder_text(self, modality: Modality) -> str:
        """What a chat template that takes plain strings needs in a message for one item."""
        ...

    def expand(self, token_ids: Sequence[int], media: Sequence[MediaInfo]) -> ExpandedPrompt:
        """Grows each placeholder to its item's rows and computes positions.

        Args:
            token_ids: the prompt, one placeholder for each item; what `item_text` gave
                in the place of the placeholders where the layout `WritesItems`.

        Raises:
            InvalidRequestError: placeholders and media differ in number.
        """
        ...


@runtime_checkable
class WritesItems(PromptLayout, Protocol):
    """A `PromptLayout` that writes an item out in the prompt's text before it is tokenised.

    For families whose processors put words, tags or line breaks around an item's
    rows: these merge with the text beside them, so tokens alone cannot be patched.

    A modality that has no token of its own may be left out of `placeholder_ids`: its
    `placeholder_text` then stands for an item until that is written out.
    """

    def item_text(self, modality: Modality, info: MediaInfo) -> str:
        """What replaces an item's placeholder in the text.

        `expand` then gets the tokens of the whole text, and grows whatever token
        stands in it for a run of rows.
        """
        ...


@dataclass(frozen=True, slots=True)
class KvLayout:
    """What the paged KV cache must hold for a language model."""

    layer_count: int
    kv_head_count: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class StateShape:
    """One tensor that layers keep of every sequence beside the paged cache.

    Attributes:
        layer_count: layers that keep it.
        shape: of one sequence in one layer.
        exact: float32 whatever the model's type is.
    """

    layer_count: int
    shape: tuple[int, ...]
    exact: bool


class StepStates(Protocol):
    """The states of a step's sequences, in the order of the flat batch.

    What is written is kept once the whole step has succeeded.

    Attributes:
        counts: tokens of each sequence.
        single_count: sequences at the front that have one token.
    """

    counts: Sequence[int]
    single_count: int

    def read(self, name: str, layer: int, sequences: slice) -> torch.Tensor:
        """A copy (sequences, *shape), zeros for those that are at their first token."""
        ...

    def write(self, name: str, layer: int, sequences: slice, values: torch.Tensor) -> None:
        """Sets what the next step reads."""
        ...


class LanguageModel(Protocol):
    """The LLM half with its weights: Hugging Face modeling code on a flat batch."""

    hidden_size: int
    vocabulary_size: int
    kv_layout: KvLayout
    extra_widths: Mapping[str, int]
    """Tensors of an item beside its main one that `forward` takes as `extras`, and their widths."""
    state_shapes: Mapping[str, StateShape]
    """What layers keep of every sequence beside the cache, by name. Such a model's blocks alone do
    not continue a sequence, so they are not shared between sequences."""

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 (tokens,) to (tokens, hidden). Placeholder ids give rows to be overwritten."""
        ...

    def forward(self, inputs_embeds: torch.Tensor, positions: torch.Tensor, **attention: Any) -> torch.Tensor:
        """Runs the decoder on a flattened batch.

        Args:
            inputs_embeds: (tokens, hidden).
            positions: int64 (axes, tokens).
            attention: handed through the modeling code to the registered
                attention function on every layer. Where the model has
                `extra_widths` and the step has media rows, also `extras`: by name
                (tokens, width), zero on rows that no item fills. Where it has
                `state_shapes`, also `states`, a `StepStates`; without it the batch is
                one sequence from its first token on.

        Returns:
            Final hidden states, normalised, (tokens, hidden).
        """
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) to float32 (tokens, vocabulary)."""
        ...


@dataclass(frozen=True, slots=True)
class RowRun:
    """Rows of a step that follow each other and belong to one sequence.

    Attributes:
        first: the first of them in the flattened batch.
        count: how many there are.
        variant: which set of weights computes them; see `ExpandedPrompt`.
        switched: the sequence has passed the model's `switch_length`.
    """

    first: int
    count: int
    variant: str
    switched: bool


@runtime_checkable
class ChoosesByRow(LanguageModel, Protocol):
    """A `LanguageModel` that computes the rows of one step in different ways.

    Its `forward` takes `runs` too: a tuple of `RowRun`, in order, that covers the step's
    rows. Without it every row is of the variant "" and none is switched.
    """

    variants: frozenset[str]
    """Sets of weights beside the plain one, which is ""."""

    switch_length: int | None
    """A sequence of more tokens is computed in another way from its first token on: keys and
    values from before it grew so long do not hold any more. None where there is no such length."""


class Family(Protocol):
    """One model family for one checkpoint folder: a factory of its parts.

    Each part is made in the process that needs it; making one reads only the
    tensors that it holds.
    """

    model_type: str
    modalities: tuple[Modality, ...]

    def preprocessor(self) -> Preprocessor: ...

    def tower(self, device: torch.device, dtype: torch.dtype) -> Tower: ...

    def prompt_layout(self) -> PromptLayout: ...

    def language_model(self, device: torch.device, dtype: torch.dtype, attention_name: str) -> LanguageModel:
        """Loads the LLM half with the registered attention function `attention_name`."""
        ...

    def context_length(self) -> int:
        """Positions that the language model was configured for."""
        ...

    def hidden_size(self) -> int:
        """Width of an embedding row that the language model takes."""
        ...

    def config(self) -> Any:
        """The whole model's configuration, fresh, as transformers understands it."""
        ...

    def vocabulary_size(self) -> int:
        """Token ids that the language model was configured for."""
        ...

    def extra_widths(self) -> Mapping[str, int]:
        """Tensors that an item has beside its main one, and the width of each; mostly none."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder that was found and read, its weights not yet.

    Attributes:
        folder: local folder with config.json and safetensors.
        config: config.json as it stands.
        generation_config: generation_config.json, or {}.
        further: folders of other repositories whose tensors are the checkpoint's too; of
            tensors that both hold, the checkpoint's own count.
        part_folders: where the repositories that config.json names for parts of the model are
            looked for first: these folders themselves, or folders inside them.
    """

    folder: Path
    config: dict[str, Any]
    generation_config: dict[str, Any] = field(default_factory=dict)
    further: tuple[Path, ...] = ()
    part_folders: tuple[Path, ...] = ()

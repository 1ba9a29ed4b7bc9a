"""What the tests need to know about a family: how to build a tiny one, and where it differs.

Knows the fields. Does not know any family, and imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.families.catalogue import FamilyFacts, facts_of


@dataclass(frozen=True, slots=True)
class OracleOverrides:
    """How the oracle must differ from its defaults for a family. All run in the oracle's process.

    Attributes:
        auto_class: transformers' class that loads the whole model.
        load_model: folder -> whole model, float32, where transformers has no class of it; it must
            refuse a checkpoint with a missing or unknown weight.
        load_processor: folder -> processor, in the place of `AutoProcessor` with
            its image processor on the PIL backend.
        make_inputs: (processor, text, pictures, videos, arguments) -> the model's
            inputs as tensors, in the place of calling the processor. `pictures`
            are RGB PIL pictures, `videos` are pairs of frames, uint8 (frames,
            height, width, 3), and their metadata; `arguments` are the processor's
            further arguments by name. Where the prompt has recordings, also
            `recordings`, float32 (samples,) at the family's rate.
        image_features: (model, inputs) -> one float tensor (rows, width) for each
            picture, in the place of `model.get_image_features`.
        video_features: as much for videos.
        audio_features: as much for recordings.
        generate: (model, inputs, count) -> token ids, in the place of calling the model's own
            `generate`.
        generate_arguments: further arguments of `generate`.
        load_arguments: further arguments of the class's `from_pretrained`.
        running: (model, folder, inputs) -> a context in which the model is run with
            these inputs, for adapters that depend on them.
    """

    auto_class: str = "AutoModelForImageTextToText"
    load_model: Callable[[Path], Any] | None = None
    load_processor: Callable[[Path], Any] | None = None
    make_inputs: Callable[..., Mapping[str, Any]] | None = None
    image_features: Callable[[Any, Mapping[str, Any]], Any] | None = None
    video_features: Callable[[Any, Mapping[str, Any]], Any] | None = None
    audio_features: Callable[[Any, Mapping[str, Any]], Any] | None = None
    generate: Callable[[Any, Mapping[str, Any], int], list[int]] | None = None
    generate_arguments: Mapping[str, Any] = field(default_factory=dict)
    load_arguments: Mapping[str, Any] = field(default_factory=dict)
    running: Callable[[Any, Path, Mapping[str, Any]], AbstractContextManager[None]] | None = None


@dataclass(frozen=True, slots=True)
class FamilyCase:
    """One family under test.

    What users see of it (modalities, fields of embeddings) comes from the catalogue.

    Attributes:
        model_type: as in config.json.
        build: (folder, *, seed, shard_size, **options) -> folder. Writes a complete
            tiny random-weight checkpoint as a user would bring it: config, weights,
            tokenizer, chat template, processor and generation configs.
        encoder_names: beginnings of the names, in the file that `build` writes, of
            the tensors that belong to the encoder half.
        variants: options of `build` by the variant's name; "" is the plain one,
            which all tests run for. The others run in the unit tests of halves.
        sizes: width and height of two kinds of pictures, of two aspect ratios.
        takes_text_alone: prompts may hold no item.
        most_pictures: most pictures in one prompt, or recordings where it takes no pictures;
            None: any number.
        spans_may_be_cut: a prefill chunk may end inside a span.
        mixes_modalities: transformers takes items of several modalities in one prompt.
        shares_prefixes: a repeated prompt finds its blocks in the prefix cache.
        follow_ups_share: so does what a longer prompt has in common with an earlier one.
        video_size: width and height of frames. Choose it so that the family's video
            processor does not have to resize: then both sides see the same pixels.
        video_frames: number of frames.
        fewest_frames: what transformers' video processor takes at least.
        durations: seconds of two kinds of recordings.
        longest: seconds of the longest recording that the family hears.
        sound_tolerance: what a feature of a recording may differ by from transformers' own, which
            are computed in torch.
        chunk: most tokens of a step in the end-to-end test. None: smaller than every item's
            longest span, so that all are cut; no smaller than any where none may be cut.
        least_side: pixels of a picture's shorter side, in the tests of many sizes; the
            processor refuses thinner ones.
        filled_in: tokens that the model's rules put in front of an answer.
        rows_in_front: rows of an item that stand in front of the prompt, where the processor's has none
            of them.
        buffer_ends: ends of the names of tensors that no module holds as a parameter.
        unread_names: beginnings of the names of tensors that neither half reads.
        tower_pixels: (tower, features) -> arrays by the processor's names, where it is the tower
            that makes pixels of pictures.
        other_names: functions from a tensor's name in the file to its name in another layout
            that is in the wild: older or newer transformers, the original authors' files.
        oracle: how transformers is asked.
    """

    model_type: str
    build: Callable[..., Path]
    encoder_names: tuple[str, ...]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((112, 84), (60, 140))
    takes_text_alone: bool = True
    most_pictures: int | None = None
    spans_may_be_cut: bool = True
    mixes_modalities: bool = True
    shares_prefixes: bool = True
    follow_ups_share: bool = True
    video_size: tuple[int, int] = (112, 84)
    video_frames: int = 4
    fewest_frames: int = 1
    durations: tuple[float, float] = (1.3, 0.6)
    longest: float = 30.0
    sound_tolerance: float = 1e-4
    chunk: int | None = None
    least_side: int = 8
    filled_in: int = 0
    rows_in_front: int = 0
    buffer_ends: tuple[str, ...] = ()
    unread_names: tuple[str, ...] = ()
    tower_pixels: Callable[[Any, Any], Mapping[str, Any]] | None = None
    other_names: tuple[Callable[[str], str], ...] = ()
    oracle: OracleOverrides = field(default_factory=OracleOverrides)

    @property
    def facts(self) -> FamilyFacts:
        """The catalogue's entry."""
        found = facts_of(self.model_type)
        assert found is not None, f"shared/families/catalogue.py has no {self.model_type}"
        return found

    @property
    def module(self) -> str:
        """The module that holds this case, for the oracle to import."""
        return f"tests.families.{self.model_type}"

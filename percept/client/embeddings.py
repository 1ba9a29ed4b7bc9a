"""Embeddings of media as scripts hold them: named tensors, ready to be sent back.

Knows the fields' names and how several items stand in one set of tensors. Does
not check them against the model: the encoder service does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from percept.client.items import MODALITIES, Item, make_item
from percept.client.tensors import (
    raw_tensor,
    read_safetensors,
    rows_of,
    to_numpy,
    to_torch,
    write_safetensors,
)
from protos.media.v1 import media_pb2
from shared.errors import BadEmbeddingsError
from shared.families.base import RawTensor
from shared.families.catalogue import Modality

_MODALITY = "percept.modality"
_COUNTS = "percept.counts"
_FLOATS = ("float32", "float16", "bfloat16")


class Embeddings(Mapping[str, "npt.NDArray[Any]"]):
    """Named tensors of one item or of several, with the fields that say their layout.

    As a mapping it gives NumPy arrays: floats as float32 (bfloat16 and float16 widened,
    which loses nothing), grids and sizes as int64. `torch()` gives torch tensors in the
    type that came from the encoder, and so does the file that `save` writes. Sent back,
    the original bytes travel.

    Attributes:
        modality: what they are of.
    """

    def __init__(
        self,
        tensors: Mapping[str, RawTensor],
        modality: Modality = "image",
        counts: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """
        Args:
            counts: of several items one after the other, how many rows of each field are each one's.
        """
        self.modality = modality
        self._counts = counts
        self._tensors = dict(tensors)

    @classmethod
    def of(cls, fields: object, modality: Modality) -> Embeddings:
        """Takes tensors as scripts have them: named in a mapping, or the rows alone.

        Raises:
            BadEmbeddingsError: what is there is no tensor.
        """
        if isinstance(fields, Embeddings):
            return fields
        named = fields if isinstance(fields, Mapping) else {f"{modality}_embeds": fields}
        if not named:
            raise BadEmbeddingsError("there are no tensors")
        return cls({str(name): raw_tensor(value, str(name)) for name, value in named.items()}, modality)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return to_numpy(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{name}: {tensor.data_type}{list(tensor.shape)}" for name, tensor in self._tensors.items()
        )
        return f"Embeddings({self.modality}, {shapes})"

    @property
    def tensors(self) -> Mapping[str, RawTensor]:
        """The tensors as they came: type, shape, bytes."""
        return self._tensors

    def torch(self) -> dict[str, Any]:
        """The tensors as torch has them. Imports torch."""
        return {name: to_torch(tensor) for name, tensor in self._tensors.items()}

    def to_bytes(self, metadata: Mapping[str, str] | None = None) -> bytes:
        """A safetensors file with one tensor for each field."""
        own: dict[str, str] = {_MODALITY: self.modality}
        if self._counts is not None:
            own[_COUNTS] = json.dumps(self._counts)
        return write_safetensors(self._tensors, {**own, **(metadata or {})})

    def save(self, path: str | Path) -> None:
        """Writes `to_bytes` to a file."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> Embeddings:
        """Reads what `save` and `percept encode` write, or any safetensors file of such fields.

        Raises:
            BadEmbeddingsError: it is no such file.
        """
        return cls.from_bytes(Path(path).read_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> Embeddings:
        """Reads what `to_bytes` writes.

        Raises:
            BadEmbeddingsError: it is no such file.
        """
        tensors, metadata = read_safetensors(data)
        return cls(tensors, _modality_of(tensors, metadata), _counts_of(tensors, metadata))

    @classmethod
    def joined(cls, parts: Sequence[Embeddings]) -> Embeddings:
        """Several items in one set of tensors, which `split` takes apart again.

        Without grids, the rows of equally large items are stacked; else they stand one after
        the other.

        Raises:
            BadEmbeddingsError: they are of several modalities, or have different fields or widths.
        """
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        if any(part.modality != first.modality or set(part) != set(first) for part in parts):
            raise BadEmbeddingsError("items of different modalities or fields do not fit together")
        pieces = {name: [part.tensors[name] for part in parts] for name in first}
        for name, tensors in pieces.items():
            if len({(tensor.data_type, *tensor.shape[1:]) for tensor in tensors}) > 1:
                raise BadEmbeddingsError(f"{name} has different widths or types", param=name)
        if f"{first.modality}_grid_thw" not in first and _can_be_stacked(pieces):
            stacked = {name: _stacked(tensors) for name, tensors in pieces.items()}
            return cls(stacked, first.modality)
        joined = {name: _concatenated(tensors) for name, tensors in pieces.items()}
        counts = {name: [tensor.shape[0] for tensor in tensors] for name, tensors in pieces.items()}
        return cls(joined, first.modality, counts)

    def split(self) -> list[Embeddings]:
        """One for each item: a prompt has one placeholder for each.

        Several items stand in one set of tensors as rows (items, rows, width), or as rows
        one after the other with one grid for each item. Of a file of ours, its metadata say
        where each item ends; of others, that every row stands for equally many patches.
        """
        if self._counts is not None:
            return [
                Embeddings(
                    {name: self._nth(name, index, counts) for name, counts in self._counts.items()},
                    self.modality,
                )
                for index in range(len(next(iter(self._counts.values()))))
            ]
        rows = self._rows()
        if len(rows.shape) == 3:
            count = rows.shape[0]
            stacked = [
                name
                for name, tensor in self._tensors.items()
                if tensor.data_type in _FLOATS and len(tensor.shape) == 3 and tensor.shape[0] == count
            ]
            return [
                self._part(index, count, {name: _unbatched(self._tensors[name], index) for name in stacked})
                for index in range(count)
            ]
        cuts = self._cuts(rows)
        if cuts is None:
            return [self]
        total, count = rows.shape[0], len(cuts) - 1
        return [
            self._part(
                index,
                count,
                {
                    name: rows_of(tensor, cuts[index], cuts[index + 1])
                    for name, tensor in self._tensors.items()
                    if tensor.data_type in _FLOATS and tensor.shape[:1] == (total,) and len(tensor.shape) == 2
                },
            )
            for index in range(count)
        ]

    def _nth(self, name: str, index: int, counts: Sequence[int]) -> RawTensor:
        start = sum(counts[:index])
        return rows_of(self._tensors[name], start, start + counts[index])

    def _rows(self) -> RawTensor:
        name = f"{self.modality}_embeds"
        if name not in self._tensors:
            raise BadEmbeddingsError(f"the field {name} is missing", param=name)
        return self._tensors[name]

    def _cuts(self, rows: RawTensor) -> list[int] | None:
        """Where each item's rows begin, and the last ones end; None where there is nothing to cut."""
        grids = self._tensors.get(f"{self.modality}_grid_thw")
        if grids is None or len(grids.shape) != 2 or grids.shape[0] < 2 or len(rows.shape) != 2:
            return None
        patches = to_numpy(grids).prod(axis=1)
        total = int(patches.sum())
        # Every row stands for equally many patches.
        if total <= 0 or any(int(count) * rows.shape[0] % total for count in patches):
            return None
        return [0, *(int(end) * rows.shape[0] // total for end in np.cumsum(patches))]

    def _part(self, index: int, count: int, rows: Mapping[str, RawTensor]) -> Embeddings:
        """The item's rows with its share of the other fields."""
        others = {
            name: rows_of(tensor, index, index + 1) if tensor.shape[:1] == (count,) else tensor
            for name, tensor in self._tensors.items()
            if name not in rows
        }
        return Embeddings({**rows, **others}, self.modality)


def _modality_of(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> Modality:
    for modality in MODALITIES:
        if metadata.get(_MODALITY) == modality:
            return modality
    kinds = {name.partition("_")[0] for name in tensors}
    return "video" if "video" in kinds else "audio" if "audio" in kinds else "image"


def _counts_of(
    tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]
) -> Mapping[str, Sequence[int]] | None:
    """What a file of several items says of them.

    Raises:
        BadEmbeddingsError: it contradicts the tensors.
    """
    if _COUNTS not in metadata:
        return None
    try:
        counts = json.loads(metadata[_COUNTS])
        sums = {name: sum(each) for name, each in counts.items()}
        lengths = {len(each) for each in counts.values()}
    except (ValueError, TypeError, AttributeError):
        sums, lengths = {}, set()
    if len(lengths) != 1 or sums != {name: tensor.shape[0] for name, tensor in tensors.items()}:
        raise BadEmbeddingsError("the file's metadata contradict its tensors")
    return dict(counts)


def _can_be_stacked(pieces: Mapping[str, Sequence[RawTensor]]) -> bool:
    """Rows of equally many, and everything else once for each item."""
    rows = [tensors for tensors in pieces.values() if _holds_rows(tensors[0])]
    others = [tensors for tensors in pieces.values() if not _holds_rows(tensors[0])]
    return all(len({tensor.shape for tensor in tensors}) == 1 for tensors in rows) and all(
        tensor.shape[0] == 1 for tensors in others for tensor in tensors
    )


def _holds_rows(tensor: RawTensor) -> bool:
    return tensor.data_type in _FLOATS and len(tensor.shape) == 2


def _concatenated(pieces: Sequence[RawTensor]) -> RawTensor:
    first = pieces[0]
    shape = (sum(piece.shape[0] for piece in pieces), *first.shape[1:])
    return RawTensor(first.data_type, shape, b"".join(piece.data for piece in pieces))


def _stacked(pieces: Sequence[RawTensor]) -> RawTensor:
    """Rows get a dimension in front; what each item has once has it already."""
    first = pieces[0]
    if not _holds_rows(first):
        return _concatenated(pieces)
    return RawTensor(first.data_type, (len(pieces), *first.shape), b"".join(piece.data for piece in pieces))


def _unbatched(tensor: RawTensor, index: int) -> RawTensor:
    row = rows_of(tensor, index, index + 1)
    return RawTensor(row.data_type, row.shape[1:], row.data)


def embeddings_items(embeddings: Embeddings, param: str) -> list[Item]:
    """The items of a set of tensors, as the wire takes them.

    Raises:
        BadEmbeddingsError: the rows are missing.
    """
    parts = embeddings.split()
    names = [param] if len(parts) == 1 else [f"{param}[{index}]" for index in range(len(parts))]
    return [_item(part, name) for part, name in zip(parts, names, strict=True)]


def _item(embeddings: Embeddings, param: str) -> Item:
    fields = [
        media_pb2.PrecomputedField(name=name, data=write_safetensors({name: tensor}, {}))
        for name, tensor in sorted(embeddings.tensors.items())
    ]
    payload = media_pb2.PrecomputedEmbeddings(fields=fields).SerializeToString(deterministic=True)
    return make_item(payload, embeddings.modality, media_pb2.MEDIA_FORM_EMBEDDINGS, "", param)

"""Layouts survive the wire, and what cannot be a layout is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.media.v1 import media_pb2
from protos.tensor.v1 import tensor_pb2
from shared import wire
from shared.errors import InvalidRequestError
from shared.families.base import Grid, MediaInfo

SIDES = st.integers(1, 2**40)
GRIDS = st.builds(Grid, SIDES, SIDES, SIDES)
INFOS = st.builds(
    MediaInfo,
    row_count=SIDES,
    grids=st.lists(GRIDS, max_size=3).map(tuple),
    image_size=st.none() | st.tuples(SIDES, SIDES),
)


@given(INFOS)
def test_a_layout_survives_the_wire(info: MediaInfo) -> None:
    message = media_pb2.MediaInfo.FromString(wire.info_to_wire(info).SerializeToString())
    assert wire.info_from_wire(message) == info


@given(st.integers(0, 5000), st.integers(1, 700))
def test_chunks_cover_all_bytes_once(byte_count: int, chunk_byte_count: int) -> None:
    ranges = list(wire.chunk_ranges(byte_count, chunk_byte_count))
    covered = [position for start, end in ranges for position in range(start, end)]
    assert covered == list(range(byte_count))
    assert all(end - start <= chunk_byte_count for start, end in ranges)


def header(**changes: object) -> media_pb2.EmbeddingsHeader:
    """A sound header of one tensor (4, 8), with fields of the tensor replaced."""
    fields: dict[str, object] = {
        "name": "embeds",
        "data_type": tensor_pb2.DATA_TYPE_BFLOAT16,
        "shape": [4, 8],
    }
    tensor = tensor_pb2.TensorHeader(**{**fields, **changes})  # type: ignore[arg-type]
    return media_pb2.EmbeddingsHeader(key="k", info=media_pb2.MediaInfo(row_count=4), tensors=[tensor])


def test_a_sound_header_is_read() -> None:
    (layout,) = wire.layouts_from_wire(header())
    assert layout == wire.TensorLayout("embeds", "bfloat16", (4, 8))
    assert (layout.row_byte_count, layout.byte_count) == (16, 64)
    again = wire.header_to_wire("k", MediaInfo(4), [layout])
    assert wire.layouts_from_wire(again) == [layout]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "x" * 65},
        {"data_type": tensor_pb2.DATA_TYPE_UNSPECIFIED},
        {"data_type": 99},
        {"shape": []},
        {"shape": [4, 0]},
        {"shape": [4, -8]},
        {"shape": [5, 8]},
        {"shape": [4, 1, 1, 1, 8]},
    ],
    ids=str,
)
def test_an_unsound_header_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        wire.layouts_from_wire(header(**changes))
    assert caught.value.param is not None


def test_a_header_without_tensors_or_with_twins_is_refused() -> None:
    twins = header()
    twins.tensors.append(twins.tensors[0])
    for bad in (twins, media_pb2.EmbeddingsHeader(info=media_pb2.MediaInfo(row_count=1))):
        with pytest.raises(InvalidRequestError):
            wire.layouts_from_wire(bad)


@pytest.mark.parametrize(
    "message",
    [
        media_pb2.MediaInfo(row_count=0),
        media_pb2.MediaInfo(row_count=-1),
        media_pb2.MediaInfo(row_count=1, grids=[media_pb2.Grid(time=1, height=-4, width=-4)]),
        media_pb2.MediaInfo(row_count=1, image_size=media_pb2.Size(height=0, width=3)),
    ],
    ids=str,
)
def test_an_unsound_layout_is_refused(message: media_pb2.MediaInfo) -> None:
    with pytest.raises(InvalidRequestError):
        wire.info_from_wire(message)

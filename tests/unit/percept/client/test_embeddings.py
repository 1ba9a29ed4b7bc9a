"""Embeddings: any library's tensors, files that safetensors reads, several items in one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors
from safetensors.torch import load_file, save_file

from encoder_service.media.embedding_files.fields import read_fields
from percept.client.embeddings import Embeddings, embeddings_items
from percept.client.media import items_of
from percept.client.tensors import raw_tensor, read_safetensors, write_safetensors
from protos.media.v1 import media_pb2
from shared.errors import BadEmbeddingsError
from shared.torch_tensors import from_raw

ROWS = torch.arange(24, dtype=torch.float32).reshape(6, 4) / 7
GRIDS = torch.tensor([[1, 2, 4], [1, 4, 4]])  # Eight and sixteen patches, four to a row.


@pytest.mark.parametrize("data_type", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_torch_tensors_keep_their_type_and_bits(data_type: torch.dtype) -> None:
    tensor = (ROWS * 7).to(data_type).t()  # Not contiguous.
    raw = raw_tensor(tensor, "name")
    assert torch.equal(from_raw(raw), tensor)
    loaded = load_safetensors(write_safetensors({"name": raw}, {"about": "it"}))
    assert torch.equal(loaded["name"], tensor) and loaded["name"].dtype == data_type
    again = Embeddings({"name": raw})
    assert torch.equal(again.torch()["name"], tensor)
    assert (
        again["name"] == tensor.to(torch.float64 if data_type == torch.int64 else torch.float32).numpy()
    ).all()


@pytest.mark.parametrize(
    ("value", "data_type", "shape"),
    [
        (np.ones((2, 3)), "float32", (2, 3)),
        (np.ones((2, 3), np.float16), "float16", (2, 3)),
        (np.ones((2, 3), ">f4"), "float32", (2, 3)),
        (np.ones(3, np.int32), "int64", (3,)),
        ([[1, 4, 4]], "int64", (1, 3)),
        ([0.5], "float32", (1,)),
        ([ROWS, ROWS], "float32", (2, 6, 4)),
        ([np.ones((2, 3)), np.ones((2, 3))], "float32", (2, 2, 3)),
    ],
)
def test_other_values(value: Any, data_type: str, shape: tuple[int, ...]) -> None:
    raw = raw_tensor(value, "name")
    assert (raw.data_type, raw.shape) == (data_type, shape)
    assert from_raw(raw).flatten()[0] == np.asarray(value[0] if isinstance(value, list) else value).flat[0]


@pytest.mark.parametrize("value", [[[1], [1, 2]], ["a"], [None], np.array([True]), np.array(["a"])])
def test_what_is_no_tensor(value: Any) -> None:
    with pytest.raises(BadEmbeddingsError) as caught:
        raw_tensor(value, "name")
    assert caught.value.param == "name"


def fields_of(item: Any) -> Mapping[str, torch.Tensor]:
    """What the encoder service reads of an item."""
    assert item.wire.form == media_pb2.MEDIA_FORM_EMBEDDINGS
    return {name: from_raw(tensor) for name, tensor in read_fields(item.payload).items()}


def test_bare_rows_are_one_item_and_stacked_ones_are_several() -> None:
    (item,) = items_of(ROWS, "image", "", "here")
    assert torch.equal(fields_of(item)["image_embeds"], ROWS)
    levels = {"image_embeds": torch.stack([ROWS, -ROWS]), "deepstack_0": torch.stack([-ROWS, ROWS])}
    assert torch.equal(fields_of(items_of(levels, "image", "", "here")[1])["deepstack_0"], ROWS)
    found = items_of(torch.stack([ROWS, -ROWS]), "image", "", "here")
    assert [entry.param for entry in found] == ["here[0]", "here[1]"]
    assert torch.equal(fields_of(found[1])["image_embeds"], -ROWS)


def test_rows_one_after_the_other_are_cut_by_their_grids() -> None:
    extra = ROWS[:, :2].contiguous()
    given_fields = {"image_embeds": ROWS, "image_grid_thw": GRIDS, "deepstack": extra}
    first, second = map(fields_of, items_of(given_fields, "image", "", "here"))
    assert torch.equal(first["image_embeds"], ROWS[:2]) and torch.equal(second["image_embeds"], ROWS[2:])
    assert torch.equal(first["deepstack"], extra[:2]) and torch.equal(second["deepstack"], extra[2:])
    assert first["image_grid_thw"].tolist() == [[1, 2, 4]]
    assert second["image_grid_thw"].tolist() == [[1, 4, 4]]


def test_other_fields_go_with_their_item() -> None:
    fields = {"image_embeds": torch.stack([ROWS, ROWS]), "image_sizes": [[3, 4], [5, 6]]}
    found = [fields_of(item)["image_sizes"].tolist() for item in items_of(fields, "image", "", "here")]
    assert found == [[[3, 4]], [[5, 6]]]


@pytest.mark.parametrize("grid", [[1, 4, 6], [[1, 4, 6]]])
def test_one_grid_is_one_item(grid: list[Any]) -> None:
    (item,) = items_of({"image_embeds": ROWS, "image_grid_thw": grid}, "image", "", "here")
    assert fields_of(item)["image_grid_thw"].tolist() == grid
    assert item.param == "here"


def test_grids_that_do_not_fit_are_left_to_the_service() -> None:
    fields = {"image_embeds": ROWS[:5], "image_grid_thw": GRIDS}
    assert len(items_of(fields, "image", "", "here")) == 1


def test_equal_embeddings_have_equal_keys() -> None:
    def key(fields: Any) -> str:
        return items_of(fields, "image", "", "here")[0].wire.key

    same = {"image_grid_thw": GRIDS[:1], "image_embeds": ROWS[:2]}
    assert key(same) == key(dict(reversed(same.items()))) == key(Embeddings.of(same, "image"))
    assert key(same) != key({**same, "image_embeds": ROWS[1:3]})


def test_without_rows() -> None:
    with pytest.raises(BadEmbeddingsError) as caught:
        items_of({"image_grid_thw": GRIDS}, "image", "", "here")
    assert caught.value.param == "here"


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5))
def test_joining_and_splitting_are_each_others_inverse(sides: list[tuple[int, int, int]]) -> None:
    noise = np.random.default_rng(0)
    parts = []
    for time, height, width in sides:
        # A row more than the grid has patches, as families with an overview do; a time for each frame.
        fields = {
            "video_embeds": noise.standard_normal((time * height * width + 1, 3), np.float32),
            "video_grid_thw": [[time, height, width]],
            "timestamps": [0.5 * index for index in range(time)],
        }
        parts.append(Embeddings.of(fields, "video"))
    again = Embeddings.from_bytes(Embeddings.joined(parts).to_bytes()).split()
    assert len(again) == len(parts)
    for one, other in zip(again, parts, strict=True):
        assert set(one) == set(other) and one.modality == "video"
        assert all((one[name] == other[name]).all() for name in other)


def test_items_without_grids_are_stacked_where_they_are_equally_large() -> None:
    one = Embeddings.of({"image_embeds": ROWS, "image_sizes": [[1, 2]]}, "image")
    small = Embeddings.of({"image_embeds": ROWS[:2], "image_sizes": [[3, 4]]}, "image")
    stacked = Embeddings.joined([one, one, one])
    assert stacked["image_embeds"].shape == (3, 6, 4) and stacked["image_sizes"].shape == (3, 2)
    assert len(Embeddings.from_bytes(stacked.to_bytes()).split()) == 3
    row = Embeddings.from_bytes(Embeddings.joined([one, small]).to_bytes())
    assert row["image_embeds"].shape == (8, 4)
    again = row.split()
    assert [part["image_sizes"].tolist() for part in again] == [[[1, 2]], [[3, 4]]]
    assert (again[1]["image_embeds"] == ROWS[:2].numpy()).all()


def test_what_does_not_fit_together() -> None:
    one = Embeddings.of({"image_embeds": ROWS}, "image")
    for other in (
        Embeddings.of({"image_embeds": ROWS[:, :2]}, "image"),
        Embeddings.of({"image_embeds": ROWS.half()}, "image"),
        Embeddings.of({"image_embeds": ROWS, "image_sizes": [[1, 2]]}, "image"),
        Embeddings.of({"image_embeds": ROWS}, "video"),
    ):
        with pytest.raises(BadEmbeddingsError):
            Embeddings.joined([one, other])


@pytest.mark.parametrize("counts", ["{", "3", "{}", '{"image_embeds": [6]}', '{"image_embeds": [3, 4]}'])
def test_metadata_that_contradict_the_tensors(counts: str) -> None:
    fields = {"image_embeds": raw_tensor(ROWS, ""), "image_grid_thw": raw_tensor(GRIDS, "")}
    with pytest.raises(BadEmbeddingsError):
        Embeddings.from_bytes(write_safetensors(fields, {"percept.counts": counts}))


def test_files_of_both_sides(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.safetensors"
    save_file({"image_embeds": ROWS.bfloat16(), "image_grid_thw": GRIDS[:1]}, theirs)
    loaded = Embeddings.load(theirs)
    assert torch.equal(loaded.torch()["image_embeds"], ROWS.bfloat16())
    loaded.save(tmp_path / "ours.safetensors")
    assert torch.equal(load_file(tmp_path / "ours.safetensors")["image_embeds"], ROWS.bfloat16())
    by_path, by_value = items_of(theirs, "image", "", "a"), embeddings_items(loaded, "a")
    assert [item.wire for item in by_path] == [item.wire for item in by_value]


@pytest.mark.parametrize("cut", [0, 4, 30, -1])
def test_a_torn_file(cut: int) -> None:
    data = Embeddings.of({"image_embeds": ROWS, "image_grid_thw": GRIDS}, "image").to_bytes()
    with pytest.raises(BadEmbeddingsError):
        read_safetensors(data[:cut])

"""The quick forward pass for training equals transformers' own, on pictures of several grids at once."""

import random

import torch
from transformers import Qwen2VLForConditionalGeneration

from models.training.conversations import converse
from models.training.examples import IGNORED, Batch, Shape, build_batch, lay_out
from models.training.network import answer_logits, encode_pictures, new_config
from models.training.plan import Plan, rate_share
from models.training.vocabulary import IMAGE, build_tokenizer

SMALL = Shape(length=192, sequences=6, pictures=12)


def small_batch(number: int = 0) -> Batch:
    return build_batch(build_tokenizer(), SMALL, 11, number)


def test_batches_are_determined_by_seed_and_number() -> None:
    one, other, next_one = small_batch().tensors(), small_batch().tensors(), small_batch(1).tensors()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["tokens"], next_one["tokens"])


@torch.no_grad()
def test_quick_pass_equals_transformers() -> None:
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(new_config()).eval()
    model.set_attn_implementation("eager")
    batch, tokenizer = small_batch(), build_tokenizer()
    quick = answer_logits(model, encode_pictures(model.model.visual, batch), batch)
    picture = 0
    for index, tokens in enumerate(batch.tokens):
        count = int((batch.rows[index] >= 0).sum())
        inputs: dict[str, torch.Tensor] = {}
        if count:
            pixels, grids = [], []
            while sum(int(grid.prod()) // 4 for grid in grids) < count:
                seen = batch.visible[picture]
                flat = batch.patches[picture][seen].float().view(-1, 3, 1, 64) / 127.5 - 1
                pixels.append(flat.expand(-1, 3, 2, 64).reshape(len(flat), -1))
                grids.append(torch.tensor([1, *(batch.coordinates[picture][seen].amax(0) + 1).tolist()]))
                picture += 1
            inputs = {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.stack(grids)}
        kinds = (tokens == tokenizer.token_to_id(IMAGE)).int()[None]
        positions = batch.positions[:, index : index + 1]
        slow = model(tokens[None], position_ids=positions, mm_token_type_ids=kinds, **inputs).logits[0]
        torch.testing.assert_close(quick[index], slow, atol=2e-4, rtol=2e-4)


def test_positions_equal_transformers_where_nothing_leaps() -> None:
    tokenizer = build_tokenizer()
    model = Qwen2VLForConditionalGeneration(new_config())
    for seed in range(40):
        sequence = lay_out(tokenizer, converse(random.Random(seed), 5), 192, NeverLeaps())
        tokens = torch.tensor([sequence.tokens])
        kinds = (tokens == tokenizer.token_to_id(IMAGE)).int()
        if not kinds.any():
            continue
        grids = torch.tensor([grid_of_scene(scene) for scene in sequence.scenes])
        positions, _ = model.model.get_rope_index(tokens, kinds, image_grid_thw=grids)
        assert positions[:, 0].T.tolist() == [list(position) for position in sequence.positions]


class NeverLeaps(random.Random):
    def random(self) -> float:
        return 1.0


def grid_of_scene(scene: object) -> list[int]:
    from models.training.pixels import MERGE, grid_of

    rows, columns = grid_of(scene.width, scene.height)  # type: ignore[attr-defined]
    return [1, rows * MERGE, columns * MERGE]


def test_only_answers_are_learnt() -> None:
    tokenizer, batch = build_tokenizer(), small_batch()
    for tokens, labels in zip(batch.tokens, batch.labels, strict=True):
        learnt = tokenizer.decode(
            [token for token in labels.tolist() if token != IGNORED], skip_special_tokens=False
        )
        assert learnt.count("<|im_end|>") == tokenizer.decode(
            tokens.tolist(), skip_special_tokens=False
        ).count("assistant\n")
        assert "<|im_start|>" not in learnt and "<|image_pad|>" not in learnt


def test_rate_rises_holds_and_falls() -> None:
    plan = Plan(steps=1000, warmup=100, decay=0.3)
    assert rate_share(plan, 0) == 0.01
    assert rate_share(plan, 500) == 1.0
    assert 0 < rate_share(plan, 999) < 0.01

"""Whatever happens in whatever order, every sequence gets the tokens that it would get alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llm_service.engine.messages import StoppingSettings
from tests.property.toy_front import ITEM_ROWS, ToyFront, make_prompt
from tests.property.toy_model import VARIANTS, Prompt, reference_tokens

KEYS = list(ITEM_ROWS)


@dataclass(frozen=True)
class Draft:
    """A prompt before a model's rules have laid it out."""

    parts: tuple[int | str, ...]
    stopping: StoppingSettings


@dataclass(frozen=True)
class Rules:
    """What differs between models."""

    axes: int
    unsplittable: frozenset[str]
    variant: str = ""

    def lay_out(self, draft: Draft) -> Prompt:
        return make_prompt(
            draft.parts,
            draft.stopping,
            axes=self.axes,
            unsplittable=self.unsplittable,
            variant=self.variant,
        )


stoppings = st.builds(
    StoppingSettings,
    max_token_count=st.integers(1, 12),
    min_token_count=st.integers(0, 3),
    stop_token_ids=st.sampled_from([[], [3], [4, 7]]),
)
# A busy machine takes its time over so many small steps.
pytestmark = pytest.mark.timeout(300)

# Few different texts, so that prefixes are shared often.
texts = st.lists(st.integers(0, 2), min_size=1, max_size=9)
parts = st.lists(st.one_of(texts, st.sampled_from(KEYS).map(lambda key: [key])), min_size=1, max_size=4)
drafts = st.builds(Draft, parts.map(lambda lists: tuple(chain.from_iterable(lists))), stoppings)
rules = st.builds(Rules, st.sampled_from([1, 3]), st.frozensets(st.sampled_from(KEYS)))
shapes = st.fixed_dictionaries(
    {
        "block_count": st.integers(6, 16),
        "block_size": st.sampled_from([1, 3, 4, 8]),
        "max_num_seqs": st.integers(1, 4),
        "max_num_batched_tokens": st.sampled_from([9, 12, 40]),
        "enable_prefix_caching": st.booleans(),
        "max_held": st.one_of(st.none(), st.integers(4, 6)),
        "switch_length": st.sampled_from([None, None, 7, 12, 18]),
    }
)


class EngineMachine(RuleBasedStateMachine):
    """Sequences come and are cancelled, rows come in pieces and go, steps run, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.front = ToyFront()

    @initialize(shape=shapes, rules=rules)
    def start(self, shape: dict[str, Any], rules: Rules) -> None:
        self.front = ToyFront(**shape)
        self.model = rules

    @rule(draft=drafts, arrival=st.integers(0, 10), variant=st.sampled_from(VARIANTS), may_wait=st.booleans())
    def add(self, draft: Draft, arrival: int, variant: str, may_wait: bool) -> None:
        prompt = replace(self.model, variant=variant).lay_out(draft)
        self.front.add(prompt, arrival=arrival, tokens_may_wait=may_wait)

    @rule(draft=drafts, count=st.integers(2, 4))
    def add_equal_ones(self, draft: Draft, count: int) -> None:
        for _ in range(count):
            self.front.add(self.model.lay_out(draft))

    @precondition(lambda self: self.front.answers)
    @rule(index=st.integers(0, 1000))
    def cancel(self, index: int) -> None:
        self.front.cancel(1 + index % len(self.front.answers))

    @rule(key=st.sampled_from(KEYS))
    def open_or_close(self, key: str) -> None:
        if key in self.front.ready:
            self.front.close(key)
        else:
            self.front.open(key)

    @rule(key=st.sampled_from(KEYS), row_count=st.integers(1, 9))
    def deliver(self, key: str, row_count: int) -> None:
        if key not in self.front.ready:
            self.front.open(key)
        self.front.deliver(key, row_count)

    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.front.step()

    @invariant()
    def books_agree(self) -> None:
        self.front.engine.check_integrity()

    def teardown(self) -> None:
        self.front.serve_all()
        self.front.check_answers()
        self.front.engine.check_integrity()
        assert self.front.engine.status().used_block_count == 0


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def answers_of(front: ToyFront, added: list[Prompt]) -> list[list[int]]:
    ids = [front.add(prompt) for prompt in added]
    front.serve_all()
    return [front.answers[sequence_id].token_ids for sequence_id in ids]


@settings(max_examples=40, deadline=None)
@given(draft=drafts, rules=rules, budget=st.integers(9, 12))
def test_chunked_equals_whole(draft: Draft, rules: Rules, budget: int) -> None:
    prompt = rules.lay_out(draft)
    whole = ToyFront(block_count=100, max_num_batched_tokens=1000, enable_prefix_caching=False)
    chunked = ToyFront(block_count=100, max_num_batched_tokens=budget, enable_prefix_caching=False)
    expected = reference_tokens(prompt, 400)
    assert answers_of(whole, [prompt]) == [expected]
    assert answers_of(chunked, [prompt]) == [expected]


@settings(max_examples=40, deadline=None)
@given(draft=drafts, others=st.lists(drafts, max_size=3), rules=rules)
def test_cached_equals_uncached(draft: Draft, others: list[Draft], rules: Rules) -> None:
    front = ToyFront(block_count=100, block_size=2)
    prompt = rules.lay_out(draft)
    cold = answers_of(front, [prompt])
    answers_of(front, [rules.lay_out(other) for other in others])
    assert answers_of(front, [prompt]) == cold == [reference_tokens(prompt, 200)]
    if not rules.unsplittable:
        first = front.answers[max(front.answers)].reports[0].first
        assert first is not None and first.cached_token_count == (len(prompt.token_ids) - 1) // 2 * 2


@settings(max_examples=40, deadline=None)
@given(added=st.lists(drafts, min_size=3, max_size=6), rules=rules)
def test_preempted_equals_unpreempted(added: list[Draft], rules: Rules) -> None:
    prompts = [rules.lay_out(draft) for draft in added]
    # A pool of 60 tokens, where the longest prompts and answers together take 48.
    tight = ToyFront(block_count=15, max_num_seqs=6, max_num_batched_tokens=64)
    roomy = ToyFront(block_count=400, max_num_seqs=6, max_num_batched_tokens=64)
    assert answers_of(tight, prompts) == answers_of(roomy, prompts)
    assert roomy.engine.status().preemption_count == 0


@settings(max_examples=40, deadline=None)
@given(added=st.lists(drafts, min_size=1, max_size=4), rules=rules, length=st.integers(1, 40))
def test_a_sequence_is_computed_again_where_it_passes_the_switch(
    added: list[Draft], rules: Rules, length: int
) -> None:
    """Asked twice, so that the second time finds the blocks of both ways of computing."""
    prompts = [rules.lay_out(draft) for draft in added]
    front = ToyFront(block_count=100, block_size=2, switch_length=length)
    expected = [reference_tokens(prompt, 200, length) for prompt in prompts]
    assert answers_of(front, prompts) == expected
    assert answers_of(front, prompts) == expected
    assert front.engine.status().preemption_count == 0


@settings(max_examples=40, deadline=None)
@given(draft=drafts, rules=rules, block_size=st.sampled_from([1, 2, 4]))
def test_variants_share_no_blocks(draft: Draft, rules: Rules, block_size: int) -> None:
    front = ToyFront(block_count=200, block_size=block_size)
    for variant in VARIANTS:
        prompt = replace(rules, variant=variant).lay_out(draft)
        assert answers_of(front, [prompt]) == [reference_tokens(prompt, 200)]
        first = front.answers[max(front.answers)].reports[0].first
        assert first is not None and first.cached_token_count == 0


@settings(max_examples=40, deadline=None)
@given(draft=drafts, rules=rules, order=st.permutations(KEYS), piece=st.integers(1, 9))
def test_rows_in_any_order_and_pieces_equal_all_at_once(
    draft: Draft, rules: Rules, order: list[str], piece: int
) -> None:
    prompt = rules.lay_out(draft)
    front = ToyFront(block_count=100)
    sequence_id = front.add(prompt)
    for key in order:
        front.open(key)
        while front.ready[key] < ITEM_ROWS[key]:
            front.deliver(key, piece)
            front.step()
    front.serve_all()
    assert front.answers[sequence_id].token_ids == reference_tokens(prompt, 400)


@settings(max_examples=40, deadline=None)
@given(
    text=texts,
    keys=st.lists(st.sampled_from(KEYS), min_size=2, max_size=2, unique=True),
    block_size=st.sampled_from([1, 2, 3, 4, 8]),
)
def test_another_item_in_the_same_place_is_no_hit(text: list[int], keys: list[str], block_size: int) -> None:
    front = ToyFront(block_count=200, block_size=block_size)
    stopping = StoppingSettings(max_token_count=4)
    prompts = [make_prompt([*text, key, *text], stopping) for key in keys]
    assert answers_of(front, prompts[:1]) == [reference_tokens(prompts[0], 200)]
    assert answers_of(front, prompts[1:]) == [reference_tokens(prompts[1], 200)]
    first = front.answers[2].reports[0].first
    assert first is not None and first.cached_token_count <= len(text)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("limited", [False, True])
def test_nobody_starves(seed: int, limited: bool) -> None:
    """New sequences never cease, rows are slow and the store holds two items: all still end soon."""
    random = Random(seed)
    seats = random.randint(1, 3)
    held = seats if limited else None
    front = ToyFront(block_count=12, max_num_seqs=seats, max_num_batched_tokens=12, max_held=held)
    rules = Rules(1, frozenset(key for key in KEYS if random.random() < 0.4))
    added: dict[int, int] = {}
    for number in range(400):
        if number % 2 == 0 and len(front.living()) < 8:
            added[front.add(rules.lay_out(_random_draft(random)))] = number
        front.serve_slowly(capacity=2, row_count=2)
        front.step()
        for sequence_id in front.living():
            assert number - added[sequence_id] < 120, f"sequence {sequence_id} starves"
    assert len(added) > 50


def _random_draft(random: Random) -> Draft:
    parts: list[int | str] = []
    for _ in range(random.randint(1, 4)):
        text = [random.randint(0, 2) for _ in range(random.randint(1, 9))]
        parts.extend([random.choice(KEYS)] if random.random() < 0.5 else text)
    return Draft(tuple(parts), StoppingSettings(max_token_count=random.randint(1, 12)))

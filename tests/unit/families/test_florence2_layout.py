"""Florence-2's two prompts stay what they are."""

from __future__ import annotations

import pytest

from shared.errors import InvalidRequestError
from shared.families.base import MediaInfo
from shared.families.florence2_layout import Florence2Layout

IMAGE, PADDING, START = 90, 1, 2
LAYOUT = Florence2Layout(
    image_id=IMAGE,
    padding_id=PADDING,
    start_ids=(START, 0),
    position_count=64,
    end_id=2,
    run_length=3,
    left_out=frozenset(),
)


@pytest.mark.parametrize("decoder", [[], [7], [START, 0, 7, PADDING]])
def test_two_prompts_stay_apart(decoder: list[int]) -> None:
    expanded = LAYOUT.expand(LAYOUT.joined([5, 6], decoder), [MediaInfo(3)])
    begun = decoder if decoder[:1] == [START] else [START, 0, *decoder]
    assert expanded.token_ids == [IMAGE] * 3 + [5, 6] + [PADDING] * 27 + begun


def test_padding_among_the_encoders_tokens_is_refused() -> None:
    """What stands behind it would be taken for the decoder's."""
    with pytest.raises(InvalidRequestError, match="padding") as caught:
        LAYOUT.joined([5, PADDING, 6], [7])
    assert caught.value.param == "encoder_prompt"

"""Scenes and their pictures: determined by the seed, inside the frame, apart from one another."""

import math
import random

import numpy as np
import pytest

from models.training.drawing import draw
from models.training.scenes import Scene, number_scene, shapes_scene, visible_colours

SCENES = [
    number_scene(random.Random(seed)) if seed % 4 == 0 else shapes_scene(random.Random(seed))
    for seed in range(200)
]


def test_same_seed_gives_the_same_scene_and_pixels() -> None:
    one, other = shapes_scene(random.Random(7)), shapes_scene(random.Random(7))
    assert one == other
    assert np.array_equal(np.asarray(draw(one)), np.asarray(draw(other)))


def test_other_seeds_give_other_pictures() -> None:
    assert len({draw(scene).tobytes() for scene in SCENES[:40]}) == 40


@pytest.mark.parametrize("scene", SCENES[:24])
def test_a_picture_has_the_size_of_its_scene(scene: Scene) -> None:
    picture = draw(scene)
    assert picture.size == (scene.width, scene.height)
    assert picture.mode == "RGB"


def test_things_stand_inside_the_frame_and_apart() -> None:
    for scene in SCENES:
        for index, thing in enumerate(scene.things):
            radius = thing.size * scene.scale / 2
            assert radius <= thing.x * scene.width <= scene.width - radius
            assert radius <= thing.y * scene.height <= scene.height - radius
            for other in scene.things[:index]:
                across = (thing.x - other.x) * scene.width
                down = (thing.y - other.y) * scene.height
                assert math.hypot(across, down) > radius + other.size * scene.scale / 2


def test_every_colour_stands_out_from_its_background() -> None:
    for scene in SCENES:
        shown = [thing.colour for thing in scene.things] + ([scene.number.colour] if scene.number else [])
        assert set(shown) <= set(visible_colours(scene.background.shade))


def test_numbers_have_one_to_three_digits_and_no_leading_zero() -> None:
    for scene in SCENES:
        if scene.number is not None:
            assert str(int(scene.number.text)) == scene.number.text
            assert len(scene.number.text) <= 3
            assert not scene.things

"""The tiny world: what can be asked, what is held out of training, what is drawn."""

import numpy as np
import pytest

from pixpod_tools.tiny.captions import SEEN_WORDS, UNSEEN_WORDS, vary
from pixpod_tools.tiny.scenes import (
    Colour,
    Position,
    Scene,
    Shape,
    Size,
    draw,
    grid_scenes,
    is_held_out,
    sample_training_scene,
)

HELD_OUT = [scene for scene in grid_scenes() if is_held_out(scene)]
TRAINED = [scene for scene in grid_scenes() if not is_held_out(scene)]


def test_the_grid_holds_every_combination_once():
    assert len(grid_scenes()) == len(set(grid_scenes())) == 8 * 7 * 4


def test_a_shape_cannot_have_the_colour_of_its_background():
    with pytest.raises(ValueError, match="red"):
        Scene(colour=Colour.RED, shape=Shape.CROSS, background=Colour.RED)


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (
            Scene(colour=Colour.RED, shape=Shape.CIRCLE, background=Colour.BLUE),
            "a red circle on a blue background",
        ),
        (
            Scene(colour=Colour.ORANGE, shape=Shape.CROSS, background=Colour.BLACK),
            "an orange cross on a black background",
        ),
        (
            Scene(
                colour=Colour.RED,
                shape=Shape.SQUARE,
                background=Colour.ORANGE,
                size=Size.SMALL,
                position=Position.TOP,
            ),
            "a small red square at the top on an orange background",
        ),
    ],
)
def test_captions_are_plain_english(scene, caption):
    assert scene.caption == caption


def test_at_least_a_fifth_of_the_combinations_is_held_out():
    assert len(HELD_OUT) == 46
    assert len(HELD_OUT) >= len(grid_scenes()) / 5


@pytest.mark.parametrize(
    ("one", "other", "num_pairs"),
    [("colour", "shape", 32), ("colour", "background", 56), ("shape", "background", 32)],
)
def test_every_pair_still_occurs_in_training(one, other, num_pairs):
    assert len({(getattr(scene, one), getattr(scene, other)) for scene in TRAINED}) == num_pairs


def test_size_and_position_do_not_change_what_is_held_out():
    held_out = HELD_OUT[0]
    moved = Scene(
        colour=held_out.colour,
        shape=held_out.shape,
        background=held_out.background,
        size=Size.LARGE,
        position=Position.LEFT,
    )
    assert is_held_out(moved)


def test_held_out_combinations_never_come_out_of_the_training_sampler():
    rng = np.random.default_rng(0)
    sampled = [sample_training_scene(rng) for _ in range(5000)]
    assert not any(is_held_out(scene) for scene in sampled)
    combinations = {(scene.colour, scene.shape, scene.background) for scene in sampled}
    assert len(combinations) == len(TRAINED)


def test_the_same_seed_draws_the_same_picture():
    scene = grid_scenes()[0]
    first, second = (draw(scene, rng=np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, draw(scene, rng=np.random.default_rng(6)))


def test_pictures_are_height_by_width():
    assert draw(grid_scenes()[0], width=96, height=64).shape == (64, 96, 3)


def test_unseen_words_stay_out_of_training_captions():
    rng = np.random.default_rng(0)
    captions = " ".join(vary(sample_training_scene(rng), rng) for _ in range(2000)).lower()
    assert not [words for words in UNSEEN_WORDS if len(words) > 3 and words in captions]
    assert not set(UNSEEN_WORDS) & set(SEEN_WORDS)


def test_training_captions_name_the_subject_or_say_nothing():
    rng = np.random.default_rng(0)
    for _ in range(500):
        scene = sample_training_scene(rng)
        caption = vary(scene, rng)
        assert caption == "" or scene.subject in caption.lower()

"""The checker: never wrong about drawn truth, and able to fail."""

from dataclasses import replace

import numpy as np
import pytest

from pixpod_tools.tiny.checker import check, recognise
from pixpod_tools.tiny.scenes import Colour, Position, Scene, Shape, Size, draw, grid_scenes

SCENE = Scene(colour=Colour.RED, shape=Shape.CIRCLE, background=Colour.BLUE)
SIZES_PX = [(64, 64), (64, 96), (96, 64)]


@pytest.mark.parametrize(("width", "height"), SIZES_PX)
@pytest.mark.parametrize("seed", range(2))
def test_rendered_scene_is_always_right(width, height, seed):
    rng = np.random.default_rng(seed)
    for scene in grid_scenes():
        verdict = check(draw(scene, width=width, height=height, rng=rng), scene)
        assert verdict.is_right and verdict.size and verdict.position, scene.caption


@pytest.mark.parametrize(("width", "height"), SIZES_PX)
@pytest.mark.parametrize("position", Position)
@pytest.mark.parametrize("size", Size)
@pytest.mark.parametrize("shape", Shape)
def test_sizes_and_positions_are_seen(shape, size, position, width, height):
    scene = replace(SCENE, shape=shape, size=size, position=position)
    for seed in range(2):
        picture = draw(scene, width=width, height=height, rng=np.random.default_rng(seed))
        verdict = check(picture, scene)
        assert verdict.is_right and verdict.size and verdict.position


def test_swapped_colours_are_wrong():
    swapped = replace(SCENE, colour=SCENE.background, background=SCENE.colour)
    verdict = check(draw(swapped), SCENE)
    assert (verdict.colour, verdict.background, verdict.shape) == (False, False, True)


@pytest.mark.parametrize("colour", sorted(set(Colour) - {SCENE.colour, SCENE.background}))
def test_another_colour_is_wrong(colour):
    assert not check(draw(replace(SCENE, colour=colour)), SCENE).colour
    assert not check(draw(replace(SCENE, background=colour)), SCENE).background


@pytest.mark.parametrize("drawn", Shape)
@pytest.mark.parametrize("asked", Shape)
def test_only_the_requested_shape_is_right(drawn, asked):
    verdict = check(draw(replace(SCENE, shape=drawn)), replace(SCENE, shape=asked))
    assert verdict.shape is (drawn is asked)


@pytest.mark.parametrize("drawn", Size)
@pytest.mark.parametrize("asked", Size)
def test_only_the_requested_size_is_right(drawn, asked):
    verdict = check(draw(replace(SCENE, size=drawn)), replace(SCENE, size=asked))
    assert verdict.size is (drawn is asked)


@pytest.mark.parametrize("drawn", Position)
@pytest.mark.parametrize("asked", Position)
def test_only_the_requested_position_is_right(drawn, asked):
    verdict = check(draw(replace(SCENE, position=drawn)), replace(SCENE, position=asked))
    assert verdict.position is (drawn is asked)


def test_an_empty_picture_shows_a_background_and_nothing_else():
    blank = np.full((64, 64, 3), Colour.BLUE.rgb, dtype=np.uint8)
    sighting = recognise(blank)
    assert sighting.background is Colour.BLUE
    assert sighting.colour is None and sighting.shape is None
    assert not check(blank, SCENE).is_right


def test_noise_is_never_right():
    rng = np.random.default_rng(0)
    for scene in grid_scenes():
        noise = rng.integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
        assert not check(noise, scene).is_right


def test_grey_is_no_colour():
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    assert recognise(grey).background is None


def test_a_torn_shape_is_no_shape():
    picture = draw(SCENE)
    picture[::4] = SCENE.background.rgb
    picture[:, ::4] = SCENE.background.rgb
    assert recognise(picture).shape is None


def test_a_slightly_noisy_picture_is_still_right():
    noise = np.random.default_rng(0).normal(0, 12, size=(64, 64, 3))
    picture = np.clip(draw(SCENE) + noise, 0, 255).astype(np.uint8)
    assert check(picture, SCENE).is_right


def test_stray_pixels_do_not_matter():
    picture = draw(SCENE)
    picture[1, 1] = picture[62, 40] = SCENE.colour.rgb
    verdict = check(picture, SCENE)
    assert verdict.is_right and verdict.size and verdict.position


def test_specks_alone_are_no_shape():
    picture = np.full((64, 64, 3), Colour.BLUE.rgb, dtype=np.uint8)
    picture[2::4, 2::4] = Colour.RED.rgb
    assert recognise(picture).shape is None

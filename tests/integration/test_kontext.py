"""Kontext changes images as the prompt says: the tiny one knows what it means."""

from dataclasses import replace

import pytest
from support.control_images import as_png, images_of
from support.tiny_models import Desk, build_tiny_worker, share

from pixpod_tools.tiny.checker import check
from pixpod_tools.tiny.scenes import Colour, draw, grid_scenes

MODEL = "flux-kontext-tiny"


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    worker = build_tiny_worker(tmp_path_factory.mktemp("out"), PIXPOD_MODELS=MODEL)
    worker.start()
    yield Desk(worker)
    worker.stop()


def other_colour(scene):
    colours = list(Colour)
    first = colours.index(scene.colour) + 1
    others = (colours[(first + step) % len(colours)] for step in range(len(colours)))
    return next(each for each in others if each is not scene.background)


@pytest.mark.parametrize("count", [28, pytest.param(224, marks=pytest.mark.acceptance)])
def test_colour_is_changed_and_the_rest_is_kept(desk, count):
    grid = grid_scenes()
    before = [grid[number * len(grid) // count] for number in range(count)]
    after = [replace(scene, colour=other_colour(scene)) for scene in before]
    jobs = [
        {"model": MODEL, "prompt": f"make it {wanted.colour}", "image": as_png(draw(scene))}
        | {"seed": seed}
        for seed, (scene, wanted) in enumerate(zip(before, after, strict=True))
    ]
    verdicts = [check(*pair) for pair in zip(images_of(desk.replies(jobs)), after, strict=True)]
    names = ("colour", "background", "shape", "position")
    found = {name: share([getattr(each, name) for each in verdicts]) for name in names}
    print(f"\n{MODEL}, {count} images: {found}")
    assert min(found.values()) >= 0.85

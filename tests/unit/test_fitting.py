"""Sizes and scaling of callers' images."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from support.factories import OFFER

from pixpod.families import FLUX as FLUX_FAMILY
from pixpod.families import SD15
from pixpod.inputs.fitting import choose_size, fit_image, fit_mask, fit_prompt_image
from pixpod.inputs.refusals import Refused
from pixpod.job import RawImage, RawMask, Resize

SDXL, FLUX = OFFER.models["sdxl"], OFFER.models["flux-dev"]


@pytest.mark.parametrize(
    ("given", "image", "spec", "size"),
    [
        ((None, None), (1024, 768), SDXL, (1024, 768)),
        ((None, None), (1023, 770), SDXL, (1016, 768)),
        ((None, None), (1023, 770), FLUX, (1008, 768)),
        ((None, None), (4000, 3000), SDXL, (1672, 1248)),
        ((None, None), (8000, 1000), FLUX, (2048, 256)),
        ((1024, None), (1000, 500), SDXL, (1024, 512)),
        ((None, 512), (1000, 500), SDXL, (1024, 512)),
        ((512, 768), (50, 50), SDXL, (512, 768)),
    ],
)
def test_size_is_that_of_the_image_as_far_as_it_is_served(given, image, spec, size):
    found = choose_size(given, image, spec)
    assert found == size
    assert spec.is_size_served(*found)


@pytest.mark.parametrize(
    ("given", "image"),
    [((None, None), (100, 80)), ((None, None), (8000, 100)), ((300, None), (900, 100))],
)
def test_image_that_gives_no_served_size_is_refused(given, image):
    with pytest.raises(Refused) as caught:
        choose_size(given, image, SDXL)
    assert caught.value.value == f"{image[0]}x{image[1]}"
    assert caught.value.hint == "give width and height"


def image_of(pixels):
    height, width = pixels.shape[:2]
    return RawImage(width=width, height=height, pixels=pixels.tobytes())


def mask_of(levels):
    height, width = levels.shape
    return RawMask(width=width, height=height, pixels=levels.tobytes())


def pixels_of(image):
    return np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width, -1)


def bands(width, height):
    """Three columns of equal width: red, green, blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel in range(3):
        pixels[:, channel * width // 3 : (channel + 1) * width // 3, channel] = 255
    return pixels


@pytest.mark.parametrize("resize", Resize)
def test_image_of_the_right_size_keeps_its_pixels(resize):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    fitted = fit_image(image_of(pixels), (48, 32), resize)
    assert np.array_equal(pixels_of(fitted.raw), pixels)
    assert fitted.digest == hashlib.sha256(b"48x32 " + pixels.tobytes()).hexdigest()


def test_cover_crops_around_the_centre():
    found = pixels_of(fit_image(image_of(bands(96, 32)), (32, 32), Resize.COVER).raw)
    assert (found == (0, 255, 0)).all()


def test_contain_repeats_the_outermost_pixels():
    found = pixels_of(fit_image(image_of(bands(96, 32)), (96, 96), Resize.CONTAIN).raw)
    assert (found == found[48]).all()
    assert np.array_equal(found[48], bands(96, 32)[0])


def test_stretch_distorts():
    found = pixels_of(fit_image(image_of(bands(96, 32)), (48, 96), Resize.STRETCH).raw)
    assert [tuple(found[48, x]) for x in (4, 24, 44)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.mark.parametrize("resize", Resize)
def test_mask_is_fitted_as_its_image_is(resize):
    pixels = bands(96, 32)
    image = pixels_of(fit_image(image_of(pixels), (64, 64), resize).raw)
    levels = np.ascontiguousarray(pixels[..., 1])
    mask = fit_mask(mask_of(levels), (96, 32), (64, 64), resize, 0)
    assert np.abs(pixels_of(mask)[..., 0].astype(int) - image[..., 1]).max() <= 1


def test_mask_of_another_size_and_the_same_shape_fits():
    levels = np.zeros((64, 64), np.uint8)
    levels[:, 32:] = 255
    found = pixels_of(fit_mask(mask_of(levels), (128, 128), (128, 128), Resize.COVER, 0))
    assert (found[:, :60] == 0).all() and (found[:, 68:] == 255).all()


def test_blur_softens_the_edge():
    levels = np.zeros((64, 64), np.uint8)
    levels[:, 32:] = 255
    found = pixels_of(fit_mask(mask_of(levels), (64, 64), (64, 64), Resize.COVER, 4))[32, :, 0]
    assert (np.diff(found.astype(int)) >= 0).all()
    assert len(set(found.tolist())) > 8


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        (np.full((32, 64), 255, np.uint8), "the image's size or shape, 64x64"),
        (np.zeros((64, 64), np.uint8), "not all black"),
    ],
)
def test_mask_that_cannot_be_used_is_refused(levels, said):
    with pytest.raises(Refused) as caught:
        fit_mask(mask_of(levels), (64, 64), (64, 64), Resize.COVER, 0)
    assert said in caught.value.accepted


@pytest.mark.parametrize("size", [(96, 64), (223, 500), (224, 224), (301, 299), (40, 999)])
def test_image_of_a_prompt_is_as_the_encoders_preprocessing_makes_it(size):
    """The shorter side is scaled, and then the centre is cropped."""
    colours = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
    raw = RawImage(width=image.width, height=image.height, pixels=image.tobytes())
    found = fit_prompt_image(raw, 224, SD15).raw
    assert (found.width, found.height) == (224, 224)
    width, height = (224 * each // min(size) for each in size)
    left, top = (width - 224) // 2, (height - 224) // 2
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    cropped = scaled.crop((left, top, left + 224, top + 224)).tobytes()
    levels = (np.frombuffer(each, np.uint8).astype(int) for each in (found.pixels, cropped))
    assert np.abs(np.subtract(*levels)).max() <= 2


def test_image_of_a_prompt_of_flux_is_stretched_to_a_square():
    raw = RawImage(width=2, height=1, pixels=b"\0\0\0\xff\xff\xff")
    found = fit_prompt_image(raw, 384, FLUX_FAMILY)
    levels = np.frombuffer(found.raw.pixels, np.uint8).reshape(384, 384, 3)
    assert levels[:, 0].max() == 0
    assert levels[:, -1].min() == 255


def test_longest_image_of_a_prompt_takes_no_more_memory_than_others():
    raw = RawImage(width=16, height=16384, pixels=bytes(3 * 16 * 16384))
    assert len(fit_prompt_image(raw, 224, SD15).raw.pixels) == 3 * 224 * 224

"""Files that other tools can read, the same bytes every time, never larger than foretold."""

import base64
import hashlib
import io
from dataclasses import replace

import numpy as np
import piexif
import piexif.helper
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.factories import make_image_prompt, make_request

import pixpod
from pixpod.job import (
    ControlOptions,
    ImageFormat,
    LongPrompt,
    ModelIdentity,
    RawImage,
    RefinerOptions,
)
from pixpod.outputs.encoding import (
    MAX_PROMPT_CHARACTERS,
    base64_bytes,
    encode,
    generation_text,
    max_encoded_bytes,
)

QUALITY = {ImageFormat.PNG: None, ImageFormat.JPEG: 90, ImageFormat.WEBP: 90}

MODEL = ModelIdentity(
    name="flux-tiny", revision="0123456789abcdef", precision="float32", weights="baked"
)


def flux_request(**changes):
    return make_request(**{**REQUEST, **changes})


REQUEST = dict(
    model="flux-tiny",
    prompt="a red circle, on a blue background",
    num_inference_steps=8,
    guidance_scale=3.5,
    scheduler="FlowMatchEulerDiscreteScheduler",
)


def noise(width, height, seed=0):
    """The most costly noise known: extremes in single pixels and, where it hurts JPEG, in 2x2."""
    random = np.random.default_rng(seed)
    single = random.integers(0, 2, (height, width, 3))
    blocks = random.integers(0, 2, (height // 2 + 1, width // 2 + 1, 3))
    doubled = blocks.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    extremes = np.where(random.random((height, width, 1)) < 0.5, single, doubled) * 255
    return raw(extremes.astype(np.uint8))


def uniform_noise(width, height, seed=0):
    random = np.random.default_rng(seed)
    return raw(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def gradient(width, height):
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return raw(np.stack([red, green, 255 - red], axis=-1).astype(np.uint8))


def raw(array):
    height, width, _ = array.shape
    return RawImage(width=width, height=height, pixels=array.tobytes())


def encoded(image, format, *, quality=None, text=None, has_ai_mark=False):
    return encode(
        image,
        index=0,
        seed=1,
        format=format,
        quality=quality or QUALITY[format],
        text=text,
        has_ai_mark=has_ai_mark,
    )


def opened(image):
    return Image.open(io.BytesIO(image.data))


def user_comment(image):
    """Return the comment as AUTOMATIC1111's web UI 1.10 reads it (`read_info_from_image`)."""
    exif = piexif.load(opened(image).info["exif"])
    return piexif.helper.UserComment.load(exif["Exif"][piexif.ExifIFD.UserComment])


def source_type(image):
    """Return what Pillow's XMP reader finds, or None."""
    meta = opened(image).getxmp().get("xmpmeta")
    return meta and meta["RDF"]["Description"]["DigitalSourceType"]


def text_inside(image):
    if image.format is ImageFormat.PNG:
        return opened(image).text["parameters"]
    return user_comment(image)


@pytest.mark.parametrize("format", ImageFormat)
def test_file_has_the_format_and_size_it_claims(format):
    image = encoded(gradient(40, 24), format)
    picture = opened(image)
    assert (picture.format, picture.size, picture.mode) == (format.upper(), (40, 24), "RGB")
    assert (image.width, image.height) == (40, 24)
    assert image.sha256 == hashlib.sha256(image.data).hexdigest()


def test_png_keeps_every_pixel():
    image = uniform_noise(33, 17)
    assert opened(encoded(image, ImageFormat.PNG)).tobytes() == image.pixels


@pytest.mark.parametrize("format", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_lossy_formats_stay_close_to_the_pixels(format):
    image = gradient(64, 64)
    decoded = np.asarray(opened(encoded(image, format)), dtype=int)
    original = np.frombuffer(image.pixels, np.uint8).reshape(64, 64, 3).astype(int)
    assert np.abs(decoded - original).mean() < 3


@pytest.mark.parametrize("format", ImageFormat)
def test_same_pixels_give_the_same_bytes(format):
    text = generation_text(flux_request(), 1, MODEL)
    first, second = (encoded(noise(32, 32), format, text=text) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("quality", "chroma"), [(94, (2, 2)), (95, (1, 1))])
def test_jpeg_keeps_full_colour_from_quality_95(quality, chroma):
    picture = opened(encoded(gradient(32, 32), ImageFormat.JPEG, quality=quality))
    (_, horizontal, vertical, _), *_ = picture.layer
    assert (horizontal, vertical) == chroma
    assert "progressive" not in picture.info


@pytest.mark.parametrize("format", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_higher_quality_is_a_larger_file(format):
    sizes = [len(encoded(noise(64, 64), format, quality=quality).data) for quality in (20, 60, 90)]
    assert sizes == sorted(set(sizes))


def test_generation_text_is_what_other_tools_parse():
    assert generation_text(flux_request(), 7, MODEL) == (
        "a red circle, on a blue background\n"
        "Steps: 8, Sampler: FlowMatchEulerDiscreteScheduler, CFG scale: 3.5, Seed: 7, Size: 64x64, "
        f"Model: flux-tiny, Model hash: 0123456789, Version: pixpod {pixpod.__version__}"
    )


def test_generation_text_says_how_texts_were_read():
    """The web UI counts `Clip skip` from 1."""
    request = make_request(clip_skip=1, prompt_weights=True, on_long_prompt=LongPrompt.CHUNK)
    text = generation_text(request, 7, MODEL)
    assert "Clip skip: 2, Prompt weights: compel, Long prompts: chunk, Size: " in text
    assert "Clip skip" not in generation_text(make_request(), 7, MODEL)


def test_generation_text_has_the_negative_prompt_on_its_own_line():
    request = flux_request(negative_prompt="blurry", true_cfg_scale=2.0)
    lines = generation_text(request, 7, MODEL).splitlines()
    assert lines[1] == "Negative prompt: blurry"
    assert "True CFG scale: 2.0" in lines[2]


def test_generation_text_leaves_out_what_the_family_does_not_know():
    assert "CFG" not in generation_text(flux_request(guidance_scale=None), 7, MODEL)


def test_generation_text_names_nets_as_the_extension_for_controlnets_does():
    control = ControlOptions(net="canny", scale=0.8, start=0.0, end=0.75)
    text = generation_text(flux_request(controls=(control, control)), 7, MODEL)
    written = '"Model: canny, Weight: 0.8, Guidance Start: 0, Guidance End: 0.75"'
    assert f"ControlNet 0: {written}, ControlNet 1: {written}, Version" in text


def test_generation_text_names_the_refiner_as_the_web_ui_does():
    refiner = RefinerOptions(name="sdxl-refiner", num_inference_steps=10)
    request = make_request(num_inference_steps=40, refiner=refiner)
    text = generation_text(request, 7, MODEL)
    assert "Steps: 40," in text
    assert "Refiner: sdxl-refiner, Refiner switch at: 0.75, Version" in text


def test_generation_text_names_the_adapter_of_an_image_prompt():
    prompt = make_image_prompt(num_images=2, scale=0.6)
    text = generation_text(flux_request(image_prompt=prompt), 7, MODEL)
    assert ', IP-Adapter: "Model: plus, Weight: 0.6, Images: 2", Version' in text


def test_generation_text_quotes_a_value_with_a_separator():
    text = generation_text(flux_request(), 7, replace(MODEL, name="mine, tuned"))
    assert 'Model: "mine, tuned", Model hash' in text


@pytest.mark.parametrize("format", ImageFormat)
@pytest.mark.parametrize("prompt", ["a red circle", "café", "雪の日 ☃ 😀", "two\nlines", "nul \0 "])
def test_text_in_the_file_is_the_text_given(format, prompt):
    text = generation_text(flux_request(prompt=prompt), 1, MODEL)
    assert text_inside(encoded(gradient(16, 16), format, text=text)) == text


@pytest.mark.parametrize("format", ImageFormat)
def test_no_text_means_no_metadata_at_all(format):
    picture = opened(encoded(gradient(16, 16), format))
    assert not picture.getexif()
    assert not picture.getxmp()
    assert "parameters" not in picture.info


@pytest.mark.parametrize("format", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_piexif_finds_the_comment_in_the_file_itself(format):
    exif = piexif.load(encoded(gradient(16, 16), format, text="a red circle").data)
    assert exif["Exif"] == {37510: b"UNICODE\0" + "a red circle".encode("utf-16-be")}


@pytest.mark.parametrize("text", [None, "a red circle"])
@pytest.mark.parametrize("format", ImageFormat)
def test_file_is_marked_as_generated(format, text):
    image = encoded(gradient(16, 16), format, text=text, has_ai_mark=True)
    assert source_type(image) == (
        "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    )
    plain = encoded(gradient(16, 16), format, text=text)
    assert source_type(plain) is None
    assert len(image.data) - len(plain.data) < 600
    assert opened(image).tobytes() == opened(plain).tobytes()


def test_generation_text_without_prompts_is_the_line_of_settings():
    request = flux_request(negative_prompt="blurry", true_cfg_scale=2.0)
    with_them = generation_text(request, 7, MODEL)
    without = generation_text(request, 7, MODEL, has_prompts=False)
    assert without == with_them.splitlines()[-1]


@pytest.mark.parametrize("format", ImageFormat)
def test_half_a_surrogate_pair_does_not_stop_a_file(format):
    text = generation_text(flux_request(prompt="a \ud83d circle"), 1, MODEL)
    assert text_inside(encoded(gradient(16, 16), format, text=text)).startswith("a ? circle")


@pytest.mark.parametrize("format", ImageFormat)
def test_prompts_are_cut_to_what_a_file_can_hold(format):
    prompt = "😀" * (MAX_PROMPT_CHARACTERS + 1)
    request = flux_request(prompt=prompt, negative_prompt=prompt)
    text = generation_text(request, 1, MODEL)
    image = encoded(gradient(16, 16), format, text=text, has_ai_mark=True)
    first, second, settings_line = text_inside(image).splitlines()
    assert len(first) == MAX_PROMPT_CHARACTERS
    assert first.endswith("…") and second.endswith("…")
    assert settings_line.startswith("Steps: 8")
    assert len(image.data) <= max_encoded_bytes(16, 16, format, QUALITY[format])


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    format=st.sampled_from(ImageFormat),
    quality=st.integers(1, 100),
    seed=st.integers(0, 2**32),
    make=st.sampled_from([noise, uniform_noise]),
)
@settings(max_examples=60, deadline=None)
def test_no_noise_is_larger_than_predicted(width, height, format, quality, seed, make):
    image = make(width, height, seed)
    size = len(encoded(image, format, quality=quality).data)
    # The allowance is for metadata, of which there is none here.
    assert size <= max_encoded_bytes(width, height, format, quality) - 39_000


@pytest.mark.parametrize("quality", range(5, 101, 5))
@pytest.mark.parametrize("format", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_predicted_size_is_not_absurd(format, quality):
    size = len(encoded(noise(256, 256), format, quality=quality).data)
    foretold = max_encoded_bytes(256, 256, format, quality) - 40_000
    assert foretold >= size
    assert quality < 30 or foretold < 1.5 * size


def test_png_is_predicted_within_one_part_in_fifty():
    size = len(encoded(uniform_noise(512, 512), ImageFormat.PNG).data)
    assert size <= max_encoded_bytes(512, 512, ImageFormat.PNG, None) < 1.02 * size + 40_000


def test_wide_noise_at_the_highest_quality_fits_the_coders_buffer():
    """One row of its blocks, 100 kB, is more than Pillow's buffer of 64 KiB."""
    image = encoded(noise(2560, 16), ImageFormat.JPEG, quality=100)
    assert opened(image).size == (2560, 16)


@given(st.binary(max_size=200))
def test_base64_length_is_exact(data):
    assert base64_bytes(len(data)) == len(base64.b64encode(data))

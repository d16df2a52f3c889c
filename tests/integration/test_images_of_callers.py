"""Unusual and hostile images: right pixels or a code, in bounded time and memory."""

import random

import pytest
from support.image_runs import run_images
from support.odd_images import (
    ODD_IMAGES,
    jpeg_turned,
    png,
    progressive,
    saved,
    segment,
    with_alpha,
)

from pixpod.errors import ImageRefused
from pixpod.inputs.image_files import read_image_file
from pixpod.inputs.images import decode_image, decode_mask
from pixpod.inputs.refusals import Refused

MAX_S = 10
MAX_MIB = 700


def check(found):
    assert {each["name"]: each["wrong"] for each in found if each["wrong"]} == {}
    slow = {each["name"]: each["seconds"] for each in found if each["seconds"] > MAX_S}
    large = {each["name"]: each["mib"] for each in found if each["mib"] > MAX_MIB}
    assert (slow, large) == ({}, {})


def test_odd_images_have_the_right_pixels_or_a_code(tmp_path):
    assert len(ODD_IMAGES) >= 70
    assert len({odd.name for odd in ODD_IMAGES}) == len(ODD_IMAGES)
    check(run_images(tmp_path, is_big=False))


def test_no_scan_appears_where_a_segment_was_dropped():
    data = progressive()
    hidden = b"\xff\xff\xe5\0\2" + segment(0xDA, bytes((1, 1, 0, 1, 5, 0x10)))[1:]
    found = read_image_file(data[:-2] + 99 * hidden + b"\xff\xd9")
    assert found.data.count(b"\xff\xda") == data.count(b"\xff\xda")


@pytest.mark.acceptance
def test_the_largest_images_keep_the_limits_of_time_and_memory(tmp_path):
    found = run_images(tmp_path, is_big=True)
    for each in found:
        print(f"{each['name']:70} {each['seconds']:6.2f} s {each['mib']:6.0f} MiB")
    check(found)


@pytest.mark.parametrize(
    "data",
    [
        png(),
        saved("PNG", with_alpha()),
        jpeg_turned(6),
        progressive(),
        saved("WEBP", lossless=True),
        saved("WEBP", with_alpha(), exif=b"Exif\0\0"),
    ],
    ids=["png", "png-alpha", "jpeg", "jpeg-progressive", "webp", "webp-alpha"],
)
def test_damage_anywhere_is_refused_with_a_code_or_decoded(data):
    chance = random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0xFF, 0xDA, 0xD9))
        if chance.random() < 0.2:
            del damaged[chance.randrange(len(data)) :]
        for decode in (decode_image, decode_mask):
            try:
                decode(bytes(damaged))
            except Refused as refused:
                assert refused.error is ImageRefused

"""Images as callers may send them: unusual ones with their pixels, and ones that must be refused.

Each shows four quarters: red, green, blue and yellow.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageCms

WIDTH, HEIGHT = 48, 32
QUARTERS = ((200, 30, 30), (30, 160, 40), (40, 60, 200), (230, 210, 40))
GREYS = tuple(Image.new("RGB", (1, 1), each).convert("L").getpixel((0, 0)) for each in QUARTERS)
GREY_QUARTERS = tuple((grey,) * 3 for grey in GREYS)
WHITE = (255, 255, 255)

TURNED = {
    1: (0, 1, 2, 3),
    2: (1, 0, 3, 2),
    3: (3, 2, 1, 0),
    4: (2, 3, 0, 1),
    5: (0, 2, 1, 3),
    6: (2, 0, 3, 1),
    7: (3, 1, 2, 0),
    8: (1, 3, 0, 2),
}
"""Quarters of the picture as it is shown, by the EXIF orientation of the file."""


@dataclass(frozen=True, kw_only=True)
class OddImage:
    """A file, and either a part of its refusal or its size and quarters.

    Both are None where any outcome with a code will do. What `is_big` takes seconds to make.
    """

    name: str
    build: Callable[[], bytes]
    refused: str | None = None
    size: tuple[int, int] | None = None
    quarters: tuple[tuple[int, int, int], ...] = QUARTERS
    tolerance: int = 2
    is_big: bool = False


def good(name, build, size=(WIDTH, HEIGHT), **changes):
    return OddImage(name=name, build=build, size=size, **changes)


def bad(name, build, refused, **changes):
    return OddImage(name=name, build=build, refused=refused, **changes)


def either(name, build, **changes):
    return OddImage(name=name, build=build, **changes)


def picture(width=WIDTH, height=HEIGHT):
    pixels = np.zeros((height, width, 3), np.uint8)
    half_x, half_y = width // 2, height // 2
    pixels[:half_y, :half_x], pixels[:half_y, half_x:] = QUARTERS[:2]
    pixels[half_y:, :half_x], pixels[half_y:, half_x:] = QUARTERS[2:]
    return Image.fromarray(pixels)


def with_alpha(width=WIDTH, height=HEIGHT):
    """The picture with a red quarter that is transparent and a yellow one that is half so."""
    image = picture(width, height).convert("RGBA")
    alpha = np.full((height, width), 255, np.uint8)
    alpha[: height // 2, : width // 2] = 0
    alpha[height // 2 :, width // 2 :] = 128
    image.putalpha(Image.fromarray(alpha))
    return image


def over_white(colour, alpha):
    return tuple(round((each * alpha + 255 * (255 - alpha)) / 255) for each in colour)


ON_WHITE = (WHITE, *QUARTERS[1:3], over_white(QUARTERS[3], 128))


def saved(format, image=None, **options):
    file = io.BytesIO()
    (picture() if image is None else image).save(file, format, **options)
    return file.getvalue()


# --- PNG by hand ---------------------------------------------------------------------------

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width=WIDTH, height=HEIGHT, bits=8, colour=2, interlace=0):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace))


def scan_lines(array):
    """Pack an array of height, width and channels; 16 bits are big-endian."""
    array = array if array.ndim == 3 else array[..., None]
    data = array.astype(">u2") if array.dtype == np.uint16 else array
    return b"".join(b"\0" + row.tobytes() for row in data)


def png(*chunks, lines=None, head=None, level=6):
    if lines is None:
        lines = scan_lines(np.asarray(picture()))
    image = chunk(b"IDAT", zlib.compress(lines, level))
    return b"".join((SIGNATURE, head or header(), *chunks, image, chunk(b"IEND")))


def png16(colour, array, *chunks):
    wide = array.astype(np.uint16) * 257
    return png(*chunks, lines=scan_lines(wide), head=header(bits=16, colour=colour))


def packed(bits):
    """A grey PNG of 1, 2 or 4 bits: black, white, grey, grey in quarters."""
    top = (1 << bits) - 1
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[: HEIGHT // 2, WIDTH // 2 :] = top
    values[HEIGHT // 2 :] = top // 2
    shifts = range(8 - bits, -1, -bits)
    lines = b"".join(
        b"\0"
        + bytes(
            sum(int(value) << shift for value, shift in zip(row[at:], shifts, strict=False))
            for at in range(0, WIDTH, 8 // bits)
        )
        for row in values
    )
    return png(lines=lines, head=header(bits=bits, colour=0))


def packed_quarters(bits):
    middle = round(((1 << bits) - 1) // 2 * 255 / ((1 << bits) - 1))
    return ((0, 0, 0), WHITE, (middle,) * 3, (middle,) * 3)


def interlaced():
    array = np.asarray(picture())
    passes = [
        *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)),
        *((0, 1, 2, 2), (1, 0, 2, 1)),
    ]
    lines = b"".join(scan_lines(array[y::step_y, x::step_x]) for y, x, step_y, step_x in passes)
    return png(lines=lines, head=header(interlace=1))


def palette(*chunks, highest=3):
    values = np.repeat(np.repeat([[0, 1], [2, highest]], HEIGHT // 2, 0), WIDTH // 2, 1)
    colours = chunk(b"PLTE", bytes(sum(QUARTERS, ())))
    lines = scan_lines(values.astype(np.uint8))
    return png(colours, *chunks, lines=lines, head=header(colour=3))


def png_of_parts(size=1):
    """A PNG whose data is in chunks of so many bytes."""
    data = zlib.compress(scan_lines(np.random.default_rng(0).integers(0, 256, (200, 200, 3), "u1")))
    parts = b"".join(chunk(b"IDAT", data[at : at + size]) for at in range(0, len(data), size))
    return SIGNATURE + header(200, 200) + parts + chunk(b"IEND")


def rewritten(data, place, new):
    return data[:place] + new + data[place + len(new) :]


def grey_with_alpha():
    return with_alpha().convert("LA")


# --- JPEG by hand --------------------------------------------------------------------------


def segment(marker, data):
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def with_segments(data, *segments):
    return data[:2] + b"".join(segments) + data[2:]


def exif(orientation, order="<", kind=3, count=1):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 0x0112, kind, count, orientation, 0)
    return mark + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


XMP = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")


def jpeg_turned(orientation, order="<"):
    data = saved("JPEG", quality=95, subsampling=0)
    return with_segments(data, segment(0xE1, b"Exif\0\0" + exif(orientation, order)))


def progressive(image=None):
    return saved("JPEG", image, quality=95, subsampling=0, progressive=True)


def with_scans(num, image=None):
    """A progressive JPEG of so many scans. A decoder runs over the whole image for each."""
    data = progressive(image)
    first_component = data[frame_of(data) + 10]
    scan = segment(0xDA, bytes((1, first_component, 0, 1, 5, 0x10)))
    return data[:-2] + scan * (num - data.count(b"\xff\xda")) + b"\xff\xd9"


def frame_of(data):
    """Return the place of the first frame header in a JPEG."""
    return next(
        data.index(bytes((0xFF, kind))) for kind in (0xC0, 0xC2) if bytes((0xFF, kind)) in data
    )


def resized(data, width, height):
    return rewritten(data, frame_of(data) + 5, struct.pack(">HH", height, width))


# --- WebP by hand --------------------------------------------------------------------------


def riff(*chunks):
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def canvas(width, height, flags):
    return (
        bytes((flags, 0, 0, 0))
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )


def webp_body(image=None, **options):
    data = saved("WEBP", image, **options)
    return data[12:16], data[20:]


# --- profiles ------------------------------------------------------------------------------


@cache
def profile(name):
    """A profile of LittleCMS: `LAB`, `XYZ` or `sRGB`."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


@cache
def swapped_profile():
    """A profile in which red and blue change places: what ignores it, shows other colours."""
    data = bytearray(profile("sRGB"))
    places = {}
    (count,) = struct.unpack_from(">I", data, 128)
    for entry in range(count):
        at = 132 + 12 * entry
        places[bytes(data[at : at + 4])] = at
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = (
        data[blue + 4 : blue + 12],
        data[red + 4 : red + 12],
    )
    return bytes(data)


SWAPPED = tuple(each[::-1] for each in QUARTERS)


def animation(format, **options):
    other = Image.new("RGB", (WIDTH, HEIGHT), "black")
    return saved(format, save_all=True, append_images=[other], **options)


def noise(width, height, mode="RGB"):
    channels = len(mode)
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(values if channels > 1 else values[..., 0], mode)


def ftyp(brand):
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(12)


PNGS = (
    good("png rgb", lambda: saved("PNG"), tolerance=0),
    good("png grey", lambda: saved("PNG", picture().convert("L")), quarters=GREY_QUARTERS),
    good("png rgba", lambda: saved("PNG", with_alpha()), quarters=ON_WHITE),
    good(
        "png grey with alpha",
        lambda: saved("PNG", grey_with_alpha()),
        quarters=(WHITE, *GREY_QUARTERS[1:3], over_white(GREY_QUARTERS[3], 128)),
    ),
    good("png palette", palette, tolerance=0),
    good(
        "png palette with alpha",
        lambda: palette(chunk(b"tRNS", bytes((0, 255, 255, 128)))),
        quarters=ON_WHITE,
    ),
    *(
        good(f"png of {bits} bits", lambda bits=bits: packed(bits), quarters=packed_quarters(bits))
        for bits in (1, 2, 4)
    ),
    good(
        "png grey of 16 bits",
        lambda: png16(0, np.asarray(picture().convert("L"))),
        quarters=GREY_QUARTERS,
    ),
    good("png rgb of 16 bits", lambda: png16(2, np.asarray(picture()))),
    good("png rgba of 16 bits", lambda: png16(6, np.asarray(with_alpha())), quarters=ON_WHITE),
    good(
        "png grey with alpha of 16 bits",
        lambda: png16(4, np.asarray(grey_with_alpha())),
        quarters=(WHITE, *GREY_QUARTERS[1:3], over_white(GREY_QUARTERS[3], 128)),
    ),
    good("png interlaced", interlaced, tolerance=0),
    good(
        "png with a transparent colour",
        lambda: png(chunk(b"tRNS", struct.pack(">HHH", *QUARTERS[0]))),
        quarters=(WHITE, *QUARTERS[1:]),
    ),
    bad(
        "png with a transparent colour of 16 bits",
        lambda: png16(2, np.asarray(picture()), chunk(b"tRNS", bytes(6))),
        "transparency by an alpha channel",
    ),
    *(
        good(
            f"png of orientation {turn}",
            lambda turn=turn: png(chunk(b"eXIf", exif(turn, ">"))),
            size=(WIDTH, HEIGHT) if turn < 5 else (HEIGHT, WIDTH),
            quarters=tuple(QUARTERS[at] for at in TURNED[turn]),
        )
        for turn in TURNED
    ),
    good(
        "png with a profile",
        lambda: saved("PNG", icc_profile=swapped_profile()),
        quarters=SWAPPED,
    ),
    good("png with a damaged profile", lambda: saved("PNG", icc_profile=b"a" * 400)),
    good("png with a profile of other colours", lambda: saved("PNG", icc_profile=profile("LAB"))),
    good(
        "png with a text of 300 MB",
        lambda: png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(300_000_000), 9))),
        is_big=True,
    ),
    good(
        "png with a long text",
        lambda: png(chunk(b"iTXt", b"workflow\0\0\0\0\0" + b"a" * 5_000_000)),
    ),
    either(
        "png with a profile of 300 MB",
        lambda: png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(300_000_000), 9))),
        is_big=True,
    ),
    good(
        "png with 300 MB behind its pixels",
        lambda: png(lines=scan_lines(np.asarray(picture())) + bytes(300_000_000)),
        is_big=True,
    ),
    good("png with a file behind it", lambda: saved("PNG") + b"PK\3\4" + bytes(100_000)),
    good("png without an end", lambda: saved("PNG")[:-12]),
    bad("png cut in its pixels", lambda: saved("PNG", noise(64, 64))[:5_000], "decoded"),
    bad("png cut in its header", lambda: saved("PNG")[:20], "complete image"),
    bad("png of its signature", lambda: SIGNATURE, "one without a header"),
    bad("png without pixels", lambda: SIGNATURE + header() + chunk(b"IEND"), "decoded"),
    bad("png with too few pixels", lambda: png(lines=bytes(1_000)), "decoded"),
    bad(
        "png with a wrong checksum of its header",
        lambda: rewritten(saved("PNG"), 29, b"abcd"),
        "decoded",
    ),
    either(
        "png with a wrong checksum of its pixels",
        lambda: saved("PNG")[:-16] + b"abcd" + chunk(b"IEND"),
    ),
    bad("png with damaged pixels", lambda: rewritten(png(), 60, bytes(30)), "decoded"),
    bad("png animation", lambda: animation("PNG"), "one frame"),
    bad("png of 60,000 parts", lambda: png_of_parts(), "at most 50000 parts"),
    good("png of 300 parts", lambda: png_of_parts(400), size=(200, 200), quarters=()),
    bad("png of no width", lambda: png(head=header(0, 32)), "sides from 16"),
    bad("png of one pixel", lambda: saved("PNG", picture(1, 1)), "sides from 16"),
    bad("png of 15 rows", lambda: saved("PNG", picture(16, 15)), "sides from 16"),
    good("png of 16 rows", lambda: saved("PNG", picture(16, 16)), size=(16, 16)),
    good("png of 16,384 columns", lambda: saved("PNG", picture(16_384, 16)), size=(16_384, 16)),
    bad("png of 16,385 columns", lambda: saved("PNG", picture(16_385, 16)), "sides from 16"),
    bad("png that says 4 gigapixels", lambda: png(head=header(2**31, 2)), "sides from 16"),
    bad("png that says 268 megapixels", lambda: png(head=header(16_384, 16_384)), "50 megapixels"),
    bad("png that says 50.01 megapixels", lambda: png(head=header(10_000, 5_001)), "50 megapixels"),
    bad("png of 3 bits", lambda: png(head=header(bits=3)), "decoded"),
    bad("png of an unknown colour", lambda: png(head=header(colour=5)), "decoded"),
    either("png palette without colours", lambda: png(head=header(colour=3))),
    either("png palette with a colour too many", lambda: palette(highest=200)),
    either(
        "png with a chunk of 4 GB",
        lambda: SIGNATURE + header() + b"\xff\xff\xff\xffIDAT" + bytes(99),
    ),
    bad("png with two headers", lambda: png(header(64, 64)), "one size"),
    either("png with an unknown critical chunk", lambda: png(chunk(b"ABCD", b"a"))),
    either("png of Apple", lambda: SIGNATURE + chunk(b"CgBI", bytes(4)) + saved("PNG")[8:]),
    good(
        "png of 50 megapixels",
        lambda: saved("PNG", picture(10_000, 5_000), compress_level=1),
        size=(10_000, 5_000),
        is_big=True,
    ),
    good(
        "png of 50 megapixels with alpha and a profile",
        lambda: saved(
            "PNG", with_alpha(5_000, 10_000), compress_level=1, icc_profile=swapped_profile()
        ),
        size=(5_000, 10_000),
        quarters=(WHITE, *SWAPPED[1:3], over_white(SWAPPED[3], 128)),
        is_big=True,
    ),
)

JPEGS = (
    good("jpeg", lambda: saved("JPEG", quality=95, subsampling=0)),
    good("jpeg of half colours", lambda: saved("JPEG", quality=95), tolerance=4),
    good(
        "jpeg grey",
        lambda: saved("JPEG", picture().convert("L")),
        quarters=GREY_QUARTERS,
        tolerance=4,
    ),
    good("jpeg progressive", progressive),
    good("jpeg cmyk", lambda: saved("JPEG", picture().convert("CMYK"), quality=95), tolerance=4),
    good(
        "jpeg with restarts",
        lambda: saved("JPEG", quality=95, subsampling=0, restart_marker_rows=1),
    ),
    *(
        good(
            f"jpeg of orientation {turn}",
            lambda turn=turn: jpeg_turned(turn),
            size=(WIDTH, HEIGHT) if turn < 5 else (HEIGHT, WIDTH),
            quarters=tuple(QUARTERS[at] for at in TURNED[turn]),
        )
        for turn in TURNED
    ),
    *(
        good(
            f"jpeg of orientation 3 with XMP {place}",
            lambda segments=segments: with_segments(
                saved("JPEG", quality=95, subsampling=0), *segments
            ),
            quarters=tuple(QUARTERS[at] for at in TURNED[3]),
        )
        for place, segments in {
            "before": (XMP, segment(0xE1, b"Exif\0\0" + exif(3))),
            "behind": (segment(0xE1, b"Exif\0\0" + exif(3)), XMP),
        }.items()
    ),
    good("jpeg of orientation 0", lambda: jpeg_turned(0)),
    good("jpeg of orientation 9", lambda: jpeg_turned(9, ">")),
    *(
        good(
            f"jpeg with {name}",
            lambda data=data: with_segments(
                saved("JPEG", quality=95, subsampling=0), segment(0xE1, b"Exif\0\0" + data)
            ),
        )
        for name, data in {
            "an EXIF of text": b"a" * 100,
            "an EXIF cut": exif(6)[:12],
            "an EXIF of 65,535 entries": b"II*\0\x08\0\0\0\xff\xff" + bytes(60_000),
            "an EXIF that leads outside": b"II*\0\xff\xff\xff\xff",
            "an orientation of 4 bytes": exif(6, kind=4),
        }.items()
    ),
    good(
        "jpeg with a profile",
        lambda: saved("JPEG", quality=95, subsampling=0, icc_profile=swapped_profile()),
        quarters=SWAPPED,
        tolerance=4,
    ),
    good(
        "jpeg with a damaged profile",
        lambda: saved("JPEG", quality=95, subsampling=0, icc_profile=swapped_profile()[:200]),
    ),
    good(
        "jpeg with a profile of other colours",
        lambda: saved("JPEG", quality=95, subsampling=0, icc_profile=profile("XYZ")),
    ),
    good(
        "jpeg of several images",
        lambda: saved(
            "MPO",
            quality=95,
            subsampling=0,
            save_all=True,
            append_images=[Image.new("RGB", (64, 64))],
        ),
    ),
    good("jpeg with a film behind it", lambda: progressive() + ftyp(b"isom") + b"\xff\xda" * 9_999),
    good(
        "jpeg with scans in its thumbnail",
        lambda: with_segments(progressive(), segment(0xE1, b"Exif\0\0" + b"\xff\xda" * 999)),
    ),
    good(
        "jpeg with a comment", lambda: with_segments(progressive(), segment(0xFE, b"\xff\xda" * 99))
    ),
    good("jpeg of 64 scans", lambda: with_scans(64)),
    bad("jpeg of 65 scans", lambda: with_scans(65), "at most 64 scans"),
    bad(
        "jpeg of 20,000 scans",
        lambda: with_scans(20_000, picture(5_000, 5_000)),
        "64 scans",
        is_big=True,
    ),
    bad(
        "jpeg with scans behind filling bytes",
        lambda: with_scans(70).replace(b"\xff\xda", b"\xff\xff\xff\xda"),
        "64 scans",
    ),
    bad(
        "jpeg with scans behind an end in a comment",
        lambda: with_segments(with_scans(70), segment(0xFE, b"\xff\xd9")),
        "64 scans",
    ),
    bad(
        "jpeg of 60,000 segments",
        lambda: with_segments(progressive(), segment(0xE5, b"") * 60_000),
        "at most 50000 parts",
    ),
    bad("jpeg of 8 million starts", lambda: b"\xff\xd8" * 8_000_000, "at most 50000 parts"),
    bad("jpeg of filling bytes", lambda: b"\xff\xd8" + b"\xff" * 30_000_000, "without a frame"),
    bad("jpeg of its signature", lambda: b"\xff\xd8\xff", "without a frame"),
    bad("jpeg without a frame", lambda: b"\xff\xd8" + segment(0xFE, b"a") + b"\xff\xd9", "frame"),
    bad("jpeg cut in a segment", lambda: saved("JPEG")[:8], "without a frame"),
    bad(
        "jpeg with a segment of no bytes",
        lambda: b"\xff\xd8\xff\xe0\0\0" + bytes(99),
        "damaged segment",
    ),
    either("jpeg without an end", lambda: saved("JPEG")[:-2]),
    either("jpeg cut in its pixels", lambda: saved("JPEG", noise(64, 64))[:2_000]),
    bad(
        "jpeg that says 4 gigapixels",
        lambda: resized(saved("JPEG"), 65_535, 65_535),
        "sides from 16",
    ),
    bad("jpeg that says no height", lambda: resized(saved("JPEG"), 48, 0), "sides from 16"),
    bad(
        "jpeg that says 256 megapixels",
        lambda: resized(saved("JPEG"), 16_000, 16_000),
        "50 megapixels",
    ),
    either("jpeg that says more than it has", lambda: resized(saved("JPEG"), 1_000, 1_000)),
    either(
        "jpeg with two frames",
        lambda: with_segments(saved("JPEG"), segment(0xC0, b"\x08\x40\0\x40\0\1\1\x11\0")),
    ),
    *(
        either(
            f"jpeg of kind {kind:x}",
            lambda kind=kind: rewritten(d := saved("JPEG"), frame_of(d) + 1, bytes((kind,))),
        )
        for kind in (0xC1, 0xC3, 0xC5, 0xC9, 0xCB)
    ),
    either("jpeg of 12 bits", lambda: rewritten(d := saved("JPEG"), frame_of(d) + 4, b"\x0c")),
    good(
        "jpeg progressive of 50 megapixels",
        lambda: saved("JPEG", picture(10_000, 5_000), progressive=True, subsampling=0),
        size=(10_000, 5_000),
        tolerance=4,
        is_big=True,
    ),
    good(
        "jpeg cmyk progressive of 50 megapixels and 64 scans",
        lambda: with_scans(64, picture(10_000, 5_000).convert("CMYK")),
        size=(10_000, 5_000),
        tolerance=8,
        is_big=True,
    ),
)

WEBPS = (
    good("webp", lambda: saved("WEBP", quality=95), tolerance=8),
    good("webp lossless", lambda: saved("WEBP", lossless=True), tolerance=0),
    good(
        "webp with alpha",
        lambda: saved("WEBP", with_alpha(), quality=95),
        quarters=ON_WHITE,
        tolerance=8,
    ),
    good(
        "webp lossless with alpha",
        lambda: saved("WEBP", with_alpha(), lossless=True, exact=True),
        quarters=ON_WHITE,
    ),
    *(
        good(
            f"webp of orientation {turn}",
            lambda turn=turn: saved("WEBP", lossless=True, exif=b"Exif\0\0" + exif(turn)),
            size=(WIDTH, HEIGHT) if turn < 5 else (HEIGHT, WIDTH),
            quarters=tuple(QUARTERS[at] for at in TURNED[turn]),
        )
        for turn in (3, 6)
    ),
    good(
        "webp with a profile",
        lambda: saved("WEBP", lossless=True, icc_profile=swapped_profile()),
        quarters=SWAPPED,
    ),
    bad("webp animation", lambda: animation("WEBP"), "one frame"),
    bad(
        "webp animation that does not say so",
        lambda: riff((b"VP8X", canvas(48, 32, 0)), (b"ANMF", bytes(16) + b"VP8L")),
        "one frame",
    ),
    bad("webp cut in its header", lambda: saved("WEBP")[:24], "complete image"),
    bad("webp cut in its pixels", lambda: saved("WEBP", noise(64, 64))[:900], "decoded"),
    bad("webp of its signature", lambda: b"RIFF\x04\0\0\0WEBP", "without a header"),
    bad("webp of an unknown kind", lambda: riff((b"VP9 ", bytes(99))), "without a header"),
    bad(
        "webp with damaged pixels",
        lambda: rewritten(saved("WEBP", lossless=True), 40, bytes(20)),
        "decoded",
    ),
    bad(
        "webp that says 40.1 megapixels",
        lambda: riff((b"VP8X", canvas(8_020, 5_000, 0)), webp_body(lossless=True)),
        "40 megapixels",
    ),
    bad(
        "webp that says 281 terapixels",
        lambda: riff((b"VP8X", canvas(2**24, 2**24, 0)), webp_body(lossless=True)),
        "sides from 16",
    ),
    either(
        "webp with a canvas of another size",
        lambda: riff((b"VP8X", canvas(4_000, 4_000, 0)), webp_body(lossless=True)),
    ),
    either(
        "webp that says a wrong length", lambda: rewritten(saved("WEBP"), 4, b"\xff\xff\xff\xff")
    ),
    good(
        "webp of 40 megapixels in 31 MiB",
        lambda: riff(
            (b"VP8X", canvas(8_000, 5_000, 0)),
            webp_body(picture(8_000, 5_000), quality=50, method=0),
            (b"JUNK", bytes(31 * 2**20)),
        ),
        size=(8_000, 5_000),
        tolerance=12,
        is_big=True,
    ),
    good(
        "webp lossless of 40 megapixels with alpha, profile and orientation",
        lambda: saved(
            "WEBP",
            with_alpha(8_000, 5_000),
            lossless=True,
            exact=True,
            method=0,
            exif=exif(3),
            icc_profile=swapped_profile(),
        ),
        size=(8_000, 5_000),
        quarters=(over_white(SWAPPED[3], 128), SWAPPED[2], SWAPPED[1], WHITE),
        is_big=True,
    ),
)

OTHERS = (
    bad("empty file", lambda: b"", "a PNG, JPEG or WebP image"),
    bad("random bytes", lambda: noise(64, 64).tobytes(), "a PNG, JPEG or WebP image"),
    bad("gif", lambda: saved("GIF"), "a PNG, JPEG or WebP image"),
    bad("bmp", lambda: saved("BMP"), "a PNG, JPEG or WebP image"),
    bad("tiff", lambda: saved("TIFF"), "a PNG, JPEG or WebP image"),
    bad("ico", lambda: saved("ICO"), "a PNG, JPEG or WebP image"),
    bad("jpeg 2000", lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "a PNG, JPEG or WebP image"),
    bad("avif", lambda: ftyp(b"avif"), "a PNG, JPEG or WebP image"),
    bad("heic", lambda: ftyp(b"heic"), "a PNG, JPEG or WebP image"),
    bad("eps", lambda: saved("EPS"), "a PNG, JPEG or WebP image"),
    bad("pdf", lambda: b"%PDF-1.7\n" + bytes(99), "a PNG, JPEG or WebP image"),
    bad("svg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a PNG, JPEG or WebP image"),
    bad("web page", lambda: b"<!doctype html><html>", "a PNG, JPEG or WebP image"),
    bad("base64", lambda: b"iVBORw0KGgo=", "a PNG, JPEG or WebP image"),
    bad("psd", lambda: b"8BPS\0\1" + bytes(99), "a PNG, JPEG or WebP image"),
    bad(
        "file of 32 MiB and a byte",
        lambda: SIGNATURE + bytes(32 * 2**20 - 7),
        "at most 33554432 bytes",
    ),
)

ODD_IMAGES = (*PNGS, *JPEGS, *WEBPS, *OTHERS)

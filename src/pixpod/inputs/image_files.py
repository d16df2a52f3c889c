"""The structure of PNG, JPEG and WebP files, read before anything is decoded.

Decoders are C code that no timeout stops: a JPEG of 1 MB with 20,000 scans keeps one busy for
minutes. What makes them slow or large is therefore counted first. Parts that do not affect pixels
are dropped, so that no decoder sees them: texts, thumbnails, further images after the first.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pixpod.errors import ImageRefused
from pixpod.inputs.refusals import Refused

MAX_IMAGE_BYTES = 32 * 2**20
MIN_SIDE_PX = 16
MAX_SIDE_PX = 16_384
MAX_PIXELS = {"PNG": 50_000_000, "JPEG": 50_000_000, "WEBP": 40_000_000}
"""Pillow holds 16 bytes a pixel while it decodes WebP, where 12 are the most for the others."""

MAX_SCANS = 64
MAX_PARTS = 50_000
"""Chunks or segments. libpng writes chunks of 8 KiB, so that the largest file has 4,096."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """An image that keeps the limits. `data` is the file without what was dropped.

    `format` is Pillow's name. `orientation` is that of EXIF, from 1 to 8; 1 is upright.
    """

    format: str
    width: int
    height: int
    data: bytes = field(repr=False)
    orientation: int = 1


def read_image_file(data: bytes) -> ImageFile:
    """Check a file by its content, whatever its name says. Raises Refused with ImageRefused."""
    if len(data) > MAX_IMAGE_BYTES:
        raise refused(f"a file of at most {MAX_IMAGE_BYTES} bytes", f"{len(data)} bytes")
    for prefix, read in _FORMATS.items():
        if re.match(prefix, data, re.DOTALL):
            try:
                found = read(data)
            except (struct.error, IndexError) as exc:
                raise refused("a complete image", "a file that ends early") from exc
            _check_size(found)
            return found
    raise refused("a PNG, JPEG or WebP image", _name_of(data), "convert it to PNG")


def _check_size(found: ImageFile) -> None:
    value = f"{found.width}x{found.height}"
    if not all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in (found.width, found.height)):
        raise refused(f"sides from {MIN_SIDE_PX} to {MAX_SIDE_PX} pixels", value)
    max_pixels = MAX_PIXELS[found.format]
    if found.width * found.height > max_pixels:
        raise refused(f"at most {max_pixels // 1_000_000} megapixels", value)


def _name_of(data: bytes) -> str:
    """Name what callers send most often by mistake."""
    for pattern, name in _OTHERS.items():
        if re.match(pattern, data, re.DOTALL):
            return name
    return "another file"


def refused(accepted: str, value: str, hint: str | None = None) -> Refused:
    """Return the refusal of an image."""
    return Refused(ImageRefused, accepted, value=value, hint=hint)


# --- PNG -----------------------------------------------------------------------------------

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"iCCP"}
_PALETTE = 3


def _read_png(data: bytes) -> ImageFile:
    if data[12:16] != b"IHDR":
        raise refused("a PNG image", "one without a header")
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    kept = [_PNG_SIGNATURE]
    exif = b""
    for kind, chunk in _png_chunks(data):
        if kind == b"acTL":
            raise refused("an image of one frame", "an animation")
        if kind == b"tRNS" and colour != _PALETTE and bits != 8:  # Pillow does not scale it
            raise refused("transparency by an alpha channel", f"a colour of {bits} bits")
        if kind == b"eXIf":
            exif = chunk[8:-4]
        if kind in _PNG_KEPT:
            kept.append(chunk)
    return ImageFile(
        format="PNG",
        width=width,
        height=height,
        data=b"".join([*kept, b"\0\0\0\0IEND\xaeB`\x82"]),
        orientation=_orientation(exif),
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and bytes of each chunk before the end; a file may end without saying so."""
    place = len(_PNG_SIGNATURE)
    for _ in _counted():
        if place + 12 > len(data):
            return
        (length,) = struct.unpack_from(">I", data, place)
        kind = data[place + 4 : place + 8]
        if kind == b"IEND":
            return
        yield kind, data[place : place + 12 + length]
        place += 12 + length


# --- JPEG ----------------------------------------------------------------------------------

_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
_JPEG_AFTER_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD8)) | {0x01, _SOI}


def _read_jpeg(data: bytes) -> ImageFile:
    size: tuple[int, int] | None = None
    num_scans = 0
    exif = b""
    kept = [b"\xff\xd8"]
    place, pattern = 2, _JPEG_MARKER
    for _ in _counted():
        found = pattern.search(data, place)
        if found is None:  # a decoder fills what is missing, or refuses it
            kept.append(data[place:])
            break
        marker = found[1][0]
        if num_scans:
            kept.append(data[place : found.start()].rstrip(b"\xff"))  # a marker may be filled up
        place, pattern = found.end(), _JPEG_MARKER
        if marker == _EOI:
            break
        if marker in _WITHOUT_LENGTH:
            continue
        (length,) = struct.unpack_from(">H", data, place)
        if length < 2:
            raise refused("a JPEG image", "one with a damaged segment")
        segment = data[place : place + length]
        if marker == 0xE1 and segment[2:].startswith(_EXIF):
            exif = segment[2:]
        if _is_kept(marker, segment):
            kept += (bytes((0xFF, marker)), segment)
        place += length
        if marker in _SOF:
            height, width = struct.unpack_from(">HH", segment, 3)
            size = width, height
        if marker == _SOS:
            num_scans += 1
            pattern = _JPEG_AFTER_SCAN
            if num_scans > MAX_SCANS:
                raise refused(f"a JPEG of at most {MAX_SCANS} scans", "one with more")
    if size is None or not num_scans:
        raise refused("a JPEG image", "one without a frame")
    clean = b"".join([*kept, b"\xff\xd9"])
    return ImageFile(
        format="JPEG", width=size[0], height=size[1], data=clean, orientation=_orientation(exif)
    )


def _is_kept(marker: int, segment: bytes) -> bool:
    """Return whether a decoder needs a segment: of those for applications, the colours' ones."""
    if marker == 0xE2:
        return segment[2:].startswith(b"ICC_PROFILE\0")
    return marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE)


# --- WebP ----------------------------------------------------------------------------------


def _read_webp(data: bytes) -> ImageFile:
    kind = data[12:16]
    exif = b""
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        width, height = width & 0x3FFF, height & 0x3FFF
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":
        chunks = dict(_riff_chunks(data))
        if data[20] & 0x02 or b"ANMF" in chunks:
            raise refused("an image of one frame", "an animation")
        exif = chunks.get(b"EXIF", b"")
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    else:
        raise refused("a WebP image", "one without a header")
    return ImageFile(
        format="WEBP", width=width, height=height, data=data, orientation=_orientation(exif)
    )


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 12
    for _ in _counted():
        if place + 8 > len(data):
            return
        (length,) = struct.unpack_from("<I", data, place + 4)
        yield data[place : place + 4], data[place + 8 : place + 8 + length]
        place += 8 + length + length % 2


# --- all -----------------------------------------------------------------------------------


_EXIF = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_SHORT = 3


def _counted() -> Iterator[int]:
    yield from range(MAX_PARTS)
    raise refused(f"a file of at most {MAX_PARTS} parts", "one with more")


def _orientation(exif: bytes) -> int:
    """Return the orientation in the first directory, 1 if there is none that can be read."""
    tiff = exif.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (place,) = struct.unpack_from(order + "I", tiff, 4)
        (num_entries,) = struct.unpack_from(order + "H", tiff, place)
        for entry in range(num_entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, place + 2 + 12 * entry)
            if (tag, kind) == (_ORIENTATION_TAG, _SHORT) and 1 <= value <= 8:
                return int(value)
    except struct.error:
        return 1
    return 1


_FORMATS: dict[bytes, Callable[[bytes], ImageFile]] = {
    re.escape(_PNG_SIGNATURE): _read_png,
    rb"\xff\xd8\xff": _read_jpeg,
    rb"RIFF....WEBP": _read_webp,
}

_OTHERS = {
    rb"GIF8": "GIF",
    rb"....ftyp(avif|avis)": "AVIF",
    rb"....ftyp(heic|heix|mif1|msf1)": "HEIC",
    rb"\xff\x0a|....JXL ": "JPEG XL",
    rb"BM": "BMP",
    rb"II\*\0|MM\0\*": "TIFF",
    rb"\s*<(\?xml|svg)": "SVG",
    rb"\s*<(!doctype|html)": "a web page",
    rb"%PDF": "PDF",
}

"""Encodes pixels as the bytes of a file, with its generation data and the mark of generated media.

The same pixels give the same bytes: a file has no time stamp and nothing of the machine.
Does not know where files go.
"""

import hashlib
import io
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import pixpod
from pixpod.job import (
    ControlOptions,
    EncodedImage,
    GenerationRequest,
    ImageFormat,
    ImagePromptOptions,
    LongPrompt,
    ModelIdentity,
    RawImage,
    RefinerOptions,
    Sampling,
    UpscalerOptions,
)

PNG_COMPRESS_LEVEL = 1
"""Level 6 takes 2 to 4 times as long for files that are 2 % (texture) to 30 % (gradient) smaller.

CPU time and size at 1024x1024, Pillow 13 with zlib-ng 2.3. An image with the 1/f spectrum of
photographs: 112 ms, 2.12 MB against 225 ms, 2.07 MB. A gradient: 62 ms, 0.66 MB against 249 ms,
0.45 MB.
"""

FULL_CHROMA_JPEG_QUALITY = 95
"""Lowest JPEG quality with colour at full resolution (4:4:4); below, it is halved (4:2:0)."""

MAX_PROMPT_CHARACTERS = 4_000
"""Maximum length of each prompt in a file; the 512 tokens of T5 are about 2 500 characters.

JPEG has 65 533 bytes for EXIF, in which a character may take four.
"""

_METADATA_BYTES = 40_000
"""Two prompts of MAX_PROMPT_CHARACTERS at four bytes each, the settings line, file headers."""

AI_MARK = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    " Iptc4xmpExt:DigitalSourceType="
    '"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>'
    "</rdf:RDF></x:xmpmeta>"
    '<?xpacket end="r"?>'
)
"""XMP that marks a file as made by a trained model: IPTC Photo Metadata, Digital Source Type.

Article 50(2) of the EU's AI Act requires a machine-readable mark.
"""

_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataOptions:
    """Choices of a deployment for all files: AI_MARK, and prompts in the generation data."""

    has_ai_mark: bool = True
    has_prompts: bool = True


def generation_text(
    request: GenerationRequest, seed: int, model: ModelIdentity, *, has_prompts: bool = True
) -> str:
    """Return what made an image, in the notation of AUTOMATIC1111's web UI.

    Other tools read it, too:
    https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/v1.10.1/modules/infotext_utils.py
    Without prompts it is the line of settings alone. The web UI counts `Clip skip` from 1. `Size`
    is the one that was generated.
    """
    prompts, loras = request.prompts, request.conditions.loras
    settings = {
        "Steps": request.sampling.num_inference_steps,
        "Sampler": request.sampling.scheduler,
        "CFG scale": request.sampling.guidance_scale,
        "True CFG scale": request.sampling.true_cfg_scale,
        "Denoising strength": request.sampling.strength,
        "Seed": seed,
        "Clip skip": request.text.clip_skip + 1 if request.text.clip_skip else None,
        "Prompt weights": "compel" if request.text.prompt_weights else None,
        "Long prompts": request.text.on_long_prompt if _is_chunked(request) else None,
        "Size": f"{request.width}x{request.height}",
        "Model": model.name,
        "Model hash": model.revision[:10],
        "Lora hashes": _listed({each.name: each.sha256[:12] for each in loras}),
        "Lora scales": _listed({each.name: f"{each.scale:g}" for each in loras}),
        **{
            f"ControlNet {index}": _control_text(control)
            for index, control in enumerate(request.controls)
        },
        **(_refiner_settings(request.refiner, request.sampling) if request.refiner else {}),
        "IP-Adapter": _image_prompt_text(request.image_prompt) if request.image_prompt else None,
        **(_upscaler_settings(request.upscaler) if request.upscaler else {}),
        "Version": f"pixpod {pixpod.__version__}",
    }
    known = (f"{name}: {_quoted(value)}" for name, value in settings.items() if value is not None)
    lines = [_shortened(prompts.prompt)] if has_prompts else []
    if has_prompts and prompts.negative_prompt:
        lines.append(f"Negative prompt: {_shortened(prompts.negative_prompt)}")
    return "\n".join([*lines, ", ".join(known)])


def _is_chunked(request: GenerationRequest) -> bool:
    return request.text.on_long_prompt is LongPrompt.CHUNK


def _control_text(control: ControlOptions) -> str:
    """Return a control in the notation of the web UI's extension for ControlNets."""
    module = f"Module: {control.preprocessor.type}, " if control.preprocessor else ""
    return (
        f"{module}Model: {control.net}, Weight: {control.scale:g}, "
        f"Guidance Start: {control.start:g}, Guidance End: {control.end:g}"
    )


def _refiner_settings(refiner: RefinerOptions, sampling: Sampling) -> dict[str, object]:
    """Return a refiner as the web UI has it, with the share of the steps before it."""
    share = 1 - refiner.num_inference_steps / sampling.num_inference_steps
    return {"Refiner": refiner.name, "Refiner switch at": f"{share:g}"}


def _upscaler_settings(upscaler: UpscalerOptions) -> dict[str, object]:
    """Return an upscaler as the web UI has it."""
    return {"Postprocess upscale by": upscaler.scale, "Postprocess upscaler": upscaler.name}


def _image_prompt_text(prompt: ImagePromptOptions) -> str:
    return f"Model: {prompt.adapter}, Weight: {prompt.scale:g}, Images: {prompt.num_images}"


def encode(
    raw: RawImage,
    *,
    index: int,
    seed: int | None,
    format: ImageFormat,
    quality: int | None,
    text: str | None,
    has_ai_mark: bool,
) -> EncodedImage:
    """Encode one image; `text` (of `generation_text`) goes into the file unless it is None.

    PNG carries it as chunk `parameters`, JPEG and WebP as EXIF UserComment. AI_MARK is XMP in all
    of them. `quality` is ignored by PNG and required by the others.
    """
    image = Image.frombytes("RGB", (raw.width, raw.height), raw.pixels)
    file = io.BytesIO()
    xmp = AI_MARK if has_ai_mark else ""
    if format is ImageFormat.PNG:
        image.save(file, "PNG", compress_level=PNG_COMPRESS_LEVEL, pnginfo=_png_info(text, xmp))
    else:
        assert quality is not None, f"{format} has a quality"
        subsampling = "4:4:4" if quality >= FULL_CHROMA_JPEG_QUALITY else "4:2:0"
        options = {"subsampling": subsampling} if format is ImageFormat.JPEG else {}
        metadata = {"exif": _exif(text), "xmp": xmp.encode()}
        image.save(file, format.upper(), quality=quality, **metadata, **options)
    data = file.getvalue()
    return EncodedImage(
        index=index,
        seed=seed,
        width=raw.width,
        height=raw.height,
        format=format,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        data=data,
    )


# fmt: off
_NOISE_BYTES_PER_PIXEL = {
    ImageFormat.JPEG: {
        50: 0.66, 75: 0.88, 85: 1.08, 90: 1.26, 94: 1.51,
        95: 3.20, 97: 3.75, 98: 4.10, 99: 4.70, 100: 5.25,
    },
    ImageFormat.WEBP: {50: 0.77, 75: 0.87, 85: 1.02, 90: 1.12, 95: 1.26, 100: 1.43},
}
# fmt: on
"""Bytes per pixel by format, then by the highest quality that a figure applies to.

Measured with Pillow 13 (libjpeg-turbo 3.2, libwebp 1.6, method 4) at 512x512, plus a tenth. The
worst of six kinds of noise: each channel of a pixel 0 or 255 at random, half of the image in
single pixels, half in 2x2 blocks, which survive halved colour. A photograph takes about a third.
"""


def max_encoded_bytes(width: int, height: int, format: ImageFormat, quality: int | None) -> int:
    """Return an upper bound for the size of `encode`'s result, for RGB noise and a full `text`.

    Small files are overestimated, by the 40 kB left for metadata.
    """
    if format is ImageFormat.PNG:
        # Deflate stores what it cannot compress; measured overhead of blocks and chunks 0.15 %.
        raw_bytes = (3 * width + 1) * height
        return raw_bytes + raw_bytes // 100 + _METADATA_BYTES
    assert quality is not None, f"{format} has a quality"
    sizes = _NOISE_BYTES_PER_PIXEL[format]
    bytes_per_pixel = sizes[min(up_to for up_to in sizes if quality <= up_to)]
    pixels_of_whole_blocks = -(-width // 16) * -(-height // 16) * 16 * 16
    return math.ceil(pixels_of_whole_blocks * bytes_per_pixel) + _METADATA_BYTES


def base64_bytes(num_bytes: int) -> int:
    """Return the length of so many bytes as base64, padding included."""
    return -(-num_bytes // 3) * 4


def _png_info(text: str | None, xmp: str) -> PngInfo:
    info = PngInfo()
    if text is not None:
        info.add_text("parameters", text)
    if xmp:
        info.add_itxt("XML:com.adobe.xmp", xmp)
    return info


def _exif(text: str | None) -> bytes:
    """Return EXIF with one tag, UserComment as UNDEFINED: Pillow would write it as BYTE.

    Readers such as piexif, which AUTOMATIC1111's web UI uses, accept only the standard's type.
    """
    if text is None:
        return b""
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    long, undefined = 4, 7
    exif_ifd_at, comment_at = 26, 44  # behind a header of 8 bytes, and directories of 18
    return (
        b"Exif\0\0MM\0*"
        + struct.pack(">IHHHIII", 8, 1, _EXIF_IFD, long, 1, exif_ifd_at, 0)
        + struct.pack(">HHHIII", 1, _USER_COMMENT, undefined, len(comment), comment_at, 0)
        + comment
    )


def _shortened(prompt: str) -> str:
    """Return a prompt as a file can contain it: cut, and with `?` for half a surrogate pair."""
    whole = prompt.encode("utf-8", "replace").decode("utf-8")
    if len(whole) <= MAX_PROMPT_CHARACTERS:
        return whole
    return whole[: MAX_PROMPT_CHARACTERS - 1] + "…"


def _listed(values: Mapping[str, str]) -> str | None:
    return ", ".join(f"{name}: {value}" for name, value in values.items()) or None


def _quoted(value: object) -> str:
    text = str(value)
    if any(separator in text for separator in ',:\n"'):
        return json.dumps(text, ensure_ascii=False)
    return text

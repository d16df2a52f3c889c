"""Valid values for tests to change: `make_request(width=128)`, `make_job(seed=0)`."""

import base64
import hashlib
import io
from pathlib import Path

from PIL import Image

from pixpod.catalog import load_catalog
from pixpod.contract.rules import Capabilities
from pixpod.engine.precision.precision import offered_qualities
from pixpod.extras import load_extras
from pixpod.job import (
    Delivery,
    EncodedImage,
    EncodedResult,
    ImageFormat,
    ImagePromptOptions,
    ModelIdentity,
)
from pixpod.settings import Settings

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

EXTRAS_FILE = Path(__file__).with_name("extras.toml")

CATALOG = load_catalog()
PUBLISHED = {"vit-h", "ip-adapter-plus-sd15", "ip-adapter-plus-sdxl", "redux"}
SHIPPED_ADAPTER = {"clip-vision-tiny", "sd15-ip-adapter-tiny"}
_LEFT_OUT = PUBLISHED | SHIPPED_ADAPTER
"""Not in the offer, in which each tiny model has one adapter."""

OFFERED_EXTRAS = {
    name: extra for name, extra in load_extras(EXTRAS_FILE).items() if name not in _LEFT_OUT
}
OFFER = Capabilities(
    models=CATALOG,
    qualities={name: offered_qualities(spec, None, None) for name, spec in CATALOG.items()},
    deliveries=(Delivery.INLINE, Delivery.DIRECTORY),
    extras=OFFERED_EXTRAS,
)
"""All built-in models and extras, tiny and real, and those of EXTRAS_FILE, but for the ones left
out, of a deployment without S3.
"""


def make_request(model="sdxl-tiny", **changes):
    """A short request; `changes` are those of `ModelSpec.default_request`."""
    defaults = {
        "prompt": "a red circle on a blue background",
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "seeds": (1,),
    }
    return CATALOG[model].default_request(**{**defaults, **changes})


def make_image_prompt(**changes):
    """The image prompt of a request by an IP-Adapter."""
    defaults = {
        "adapter": "plus",
        "encoder": "vit-h",
        "num_images": 1,
        "size_px": 224,
        "text_tokens": 0,
        "scale": 1.0,
    }
    return ImagePromptOptions(**{**defaults, **changes})


def make_input(**changes):
    return {"model": "sdxl-tiny", "prompt": "a red circle on a blue background"} | changes


def make_job(**input):
    """A job as the platform hands it over, of the shortest good input and these fields."""
    return {"id": "job-1", "input": make_input(**input)}


def make_controlled_job(**input):
    """A job that makes a control image of a black one, and asks for it."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    control = {"type": "canny", "image": image, "preprocess": True}
    return make_job(controlnets=[control], output={"name": "poster", "controls": True}, **input)


def make_files(*data, first_seed=1):
    """The files of a generated job, with these bytes as PNG images."""
    images = (
        EncodedImage(
            index=index,
            seed=first_seed + index,
            width=8,
            height=8,
            format=ImageFormat.PNG,
            sha256=hashlib.sha256(each).hexdigest(),
            size_bytes=len(each),
            data=each,
        )
        for index, each in enumerate(data)
    )
    model = ModelIdentity(name="sdxl-tiny", revision="1", precision="float32", weights="baked")
    return EncodedResult(images=tuple(images), model=model, steps=2, warnings=("a warning",))


def make_settings(**env):
    """The settings of a deployment that sets these environment variables and no others."""
    return Settings.from_env(env)

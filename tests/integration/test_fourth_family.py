"""A family that the product does not know goes from its repository to a reply, unpatched."""

import asyncio

from support.sd3 import CATALOG_ENTRY, SD3, write_random_sd3
from support.tiny_models import to_pixels

from pixpod.bootstrap import build_worker
from pixpod.catalog import load_catalog
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.families import FAMILIES, Precision
from pixpod.settings import Settings
from pixpod_tools.bake.bake import bake
from pixpod_tools.bake.recipes import ModelRecipe
from pixpod_tools.bake.sources import SourceOptions

NAME = "sd3-tiny"
PLAN = QuantizationPlan(precision=Precision.FLOAT32)
ALL_FAMILIES = {**FAMILIES, SD3.name: SD3}


def test_reply_of_a_worker_has_images_and_what_made_them(tmp_path):
    write_random_sd3(tmp_path / "repository")
    entry = tmp_path / "models.toml"
    entry.write_text(CATALOG_ENTRY, encoding="utf-8")
    options = SourceOptions(
        location=str(tmp_path / "repository"), own_models=tmp_path / "own", revision="1"
    )
    catalog = load_catalog(entry, families=ALL_FAMILIES)
    bake(tmp_path / "weights", ModelRecipe(model=NAME, plan=PLAN), catalog, options, 4_000_000_000)
    settings = {
        "PIXPOD_WEIGHTS_DIR": str(tmp_path / "weights"),
        "PIXPOD_CATALOG": str(entry),
        "PIXPOD_OUTPUT_DIR": str(tmp_path / "images"),
        "PIXPOD_DELIVERY": "inline",
    }
    worker = build_worker(Settings.from_env(settings), families=ALL_FAMILIES)
    given = {"model": NAME, "prompt": "a red circle", "num_images": 2, "seed": 5}

    async def serve():
        async with worker:
            reply = await worker.handle({"id": "job", "input": given})
            return reply, await worker.handle({"id": "d", "input": {"describe": True}})

    reply, described = asyncio.run(serve())
    assert "error" not in reply, reply
    assert reply["model"]["name"] == NAME
    assert reply["steps"] == 3
    assert [image["seed"] for image in reply["images"]] == [5, 6]
    assert {"text_encode", "denoise", "decode"} <= reply["timings_ms"].keys()
    assert [model["family"] for model in described["models"]] == ["sd3"]
    images = [to_pixels(image) for image in reply["images"]]
    assert images[0].shape == (64, 64, 3)
    assert (images[0] != images[1]).any()

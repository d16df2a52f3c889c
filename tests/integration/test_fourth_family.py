"""A family that the product does not know goes from its repository to a reply, unpatched."""

import asyncio
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from support.sd3 import CATALOG_ENTRY, SD3, write_random_sd3
from support.tiny_models import to_pixels

from pixpod.bootstrap import build_worker
from pixpod.catalog import load_catalog
from pixpod.engine.compilation.calls import RegionForward
from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.execution.condition_cache import ConditionCache
from pixpod.engine.execution.model_runner import ModelRunner
from pixpod.engine.loading.components import LoadJob
from pixpod.engine.loading.model_loading import load_model
from pixpod.engine.memory.budget import Budget
from pixpod.engine.memory.needs import need_of
from pixpod.engine.memory.placement import Placement
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.engine.scheduling.batching import BatchItem, ItemResult
from pixpod.families import FAMILIES, Precision
from pixpod.methods import StageName
from pixpod.settings import Settings
from pixpod.timeline import BootTimeline, since_process_start
from pixpod.weights.layout import files_to_read
from pixpod.weights.prefetch import Prefetch, Verify
from pixpod.weights.sources import BakedSource
from pixpod_tools.bake.bake import bake
from pixpod_tools.bake.recipes import ModelRecipe
from pixpod_tools.bake.sources import SourceOptions

NAME = "sd3-tiny"
CPU = torch.device("cpu")
PLAN = QuantizationPlan(precision=Precision.FLOAT32)
ALL_FAMILIES = {**FAMILIES, SD3.name: SD3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The repository, the weights directory baked from it, and the file with the catalog entry."""
    root = tmp_path_factory.mktemp("sd3")
    write_random_sd3(root / "repository")
    entry = root / "models.toml"
    entry.write_text(CATALOG_ENTRY, encoding="utf-8")
    options = SourceOptions(
        location=str(root / "repository"), own_models=root / "own", revision="1"
    )
    recipe = ModelRecipe(model=NAME, plan=PLAN)
    catalog = load_catalog(entry, families=ALL_FAMILIES)
    bake(root / "weights", recipe, catalog, options, 4_000_000_000)
    return root / "repository", root / "weights", entry


@pytest.fixture(scope="module")
def spec(folders):
    return load_catalog(folders[2], families=ALL_FAMILIES)[NAME]


@pytest.fixture
def load(folders, spec):
    def load_once():
        weights = BakedSource(folders[1]).find(spec)
        assert weights is not None
        prefetch = Prefetch(threads=2, verify=Verify.CHUNKS)
        try:
            prefetch.add(NAME, files_to_read(spec, weights))
            job = LoadJob(
                spec=spec,
                weights=weights,
                plan=PLAN,
                device=CPU,
                prefetch=prefetch,
                timeline=BootTimeline(since_process_start()),
            )
            return load_model(job)
        finally:
            prefetch.stop()

    return load_once


def items_of(spec, *prompts):
    return [
        BatchItem(request=spec.default_request(prompt=prompt, seeds=(seed,)), seeds=(seed,))
        for seed, prompt in enumerate(prompts)
    ]


def execute(model, items, plan=None):
    placement = Placement(plan or make_plan((), None))
    runner = ModelRunner(placement, ConditionCache(0))
    results = runner.execute(model, items, lambda step: None)
    images = [result.images[0] for result in results if isinstance(result, ItemResult)]
    assert len(images) == len(items)
    return [image.pixels.pixels for image in images], placement


def test_reply_of_a_worker_has_images_and_what_made_them(folders, tmp_path):
    settings = {
        "PIXPOD_WEIGHTS_DIR": str(folders[1]),
        "PIXPOD_CATALOG": str(folders[2]),
        "PIXPOD_OUTPUT_DIR": str(tmp_path),
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


def test_images_are_those_of_the_stock_pipeline(folders, spec, load):
    request = spec.default_request(prompt="a red circle", seeds=(7,))
    (ours,), _ = execute(load(), [BatchItem(request=request, seeds=request.seeds)])
    stock = StableDiffusion3Pipeline.from_pretrained(folders[0], dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        (image,) = stock(
            "a red circle",
            width=64,
            height=64,
            num_inference_steps=3,
            guidance_scale=4.0,
            max_sequence_length=32,
            generator=[torch.Generator().manual_seed(7)],
            output_type="pt",
        ).images
    expected = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    assert ours == expected.tobytes()


def test_neighbours_in_a_batch_of_four_change_no_pixel(spec, load):
    model = load()
    first, _ = execute(model, items_of(spec, "a red circle", "one", "two", "three"))
    second, _ = execute(model, items_of(spec, "a red circle", "four", "five", "a six"))
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_plan_offloads_stage_by_stage_and_changes_no_pixel(spec, load, folders):
    model = load()
    expected, _ = execute(model, items_of(spec, "a red circle", "one"))
    weights = BakedSource(folders[1]).find(spec)
    need = need_of(spec, PLAN, weights, model.keys)
    largest = max(need.stage_bytes(stage) for stage in need.stages)
    plan = make_plan([need], Budget(gpu_bytes=largest, overhead_bytes=0))
    found, placement = execute(model, items_of(spec, "a red circle", "one"), plan)
    assert found == expected
    assert plan.offloaded, "the budget is that of one stage"
    assert placement.host_bytes > 0


def test_regions_are_compiled_and_change_no_pixel(spec, load, tmp_path):
    expected, _ = execute(load(), items_of(spec, "a red circle"))
    model = load()
    compilation = compile_model(model, CompiledStore(tmp_path), backend="eager")
    model = replace(model, compilation=compilation)
    found, _ = execute(model, items_of(spec, "a red circle"))
    assert found == expected
    assert compilation.modes == {"transformer": "jit", "vae": "jit"}
    assert compilation.warnings == []
    assert isinstance(model.denoiser.transformer_blocks[0].forward, RegionForward)


def test_stages_name_the_components_of_the_family(spec):
    need = need_of(spec, PLAN)
    by_stage = {stage.name: stage.components for stage in need.stages}
    assert by_stage == {
        StageName.TEXT_ENCODE: ("text_encoder", "text_encoder_2", "text_encoder_3"),
        StageName.DENOISE: ("transformer",),
        StageName.DECODE: ("vae",),
    }

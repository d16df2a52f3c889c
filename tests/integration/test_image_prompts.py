"""Image prompts of the tiny models, through the whole worker, with random adapters."""

import base64
import copy
import io
import json
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import load_file, save_file
from support.control_images import as_png, cases, images_of, largest_difference
from support.factories import EXTRAS_FILE, make_image_prompt
from support.image_prompts import (
    ADAPTERS,
    ENCODER,
    FILES,
    Stock,
    bake_extras,
    load_model,
    random_image,
    write_extras,
)
from support.leaks import snapshot_of
from support.loras import lora_file
from support.tiny_models import Desk, build_tiny_worker, share
from torch._dynamo.utils import counters
from transformers import CLIPVisionModelWithProjection

from pixpod.engine.adapters.reading import read_adapter
from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.component_key import extra_key
from pixpod.engine.execution.pipelines import calls_of
from pixpod.engine.model import LoadedExtra
from pixpod.errors import ModelUnavailable
from pixpod.extras import load_extras
from pixpod.families import SD15, Precision
from pixpod.inputs.fitting import fit_prompt_image
from pixpod.job import Conditions, RawImage
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.testing.random_loras import random_lora
from pixpod.testing.runners import LocalRunner, count_graphs
from pixpod.weights.manifest import read_manifest
from pixpod_tools.bake.extras import bake_extra
from pixpod_tools.bake.sources import SourceOptions
from pixpod_tools.bake.verify import verify_directory
from pixpod_tools.tiny.checker import check
from pixpod_tools.tiny.scenes import draw, grid_scenes

PROMPT = "a red circle on a blue background"
MODELS = tuple(ADAPTERS)
STEPS = 4
IMAGES = [random_image(seed) for seed in range(3)]
ADAPTER = "sd15-ip-adapter-tiny"
EIGHT = grid_scenes()[::31]
"""Other colours, and two of each shape."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The extras as they are published."""
    folder = tmp_path_factory.mktemp("published")
    write_extras(folder)
    return folder


@pytest.fixture(scope="module")
def lora_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    for model in MODELS:
        random_lora(load_model(model), folder, 1).rename(folder / f"{model}.safetensors")
    return folder


@pytest.fixture(scope="module")
def weights(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    bake_extras(files, folder)
    return folder


@pytest.fixture(scope="module")
def desk(weights, lora_dir, tmp_path_factory):
    worker = build_tiny_worker(
        tmp_path_factory.mktemp("out"),
        PIXPOD_WEIGHTS_DIR=str(weights),
        PIXPOD_CATALOG=str(EXTRAS_FILE),
        PIXPOD_LORA_DIR=str(lora_dir),
        PIXPOD_PRECISION="float32",
    )
    worker.start()
    yield Desk(worker)
    worker.stop()


def job(model, *images, scale=None, seed=1, **given):
    shown = {"images": [as_png(np.asarray(each)) for each in images]}
    prompt = {"ip_adapter": shown | ({} if scale is None else {"scale": scale})} if images else {}
    steps = {"num_inference_steps": STEPS}
    return {"model": model, "prompt": PROMPT, "seed": seed, **prompt, **steps, **given}


def run(desk, *jobs):
    return images_of(desk.replies(jobs))


def stock_images(model, files, cases, **options):
    """What diffusers makes of (images, scale, seed), one by one."""
    stock = Stock(model, files)
    defaults = stock.model.spec.defaults
    return [
        stock.generate(
            PROMPT,
            shown,
            scale,
            seed=seed,
            num_inference_steps=STEPS,
            guidance_scale=defaults.guidance_scale,
            width=defaults.width,
            height=defaults.height,
            **options,
        )
        for shown, scale, seed in cases
    ]


@pytest.mark.parametrize("model", MODELS)
def test_batch_is_as_stock_diffusers_makes_its_images(desk, files, model):
    """Rows of one batch have other images and scales; two images each have batches of their own."""
    cases = [
        ([IMAGES[0]], 1.0, 1),
        ([IMAGES[1]], 0.4, 1),
        ([IMAGES[0]], 0.7, 2),
        ([IMAGES[0], IMAGES[1]], 1.0, 1),
        ([IMAGES[1], IMAGES[2]], 0.6, 1),
    ]
    found = run(desk, *(job(model, *shown, scale=scale, seed=seed) for shown, scale, seed in cases))
    assert largest_difference(found, stock_images(model, files, cases)) <= 1
    assert len({image.tobytes() for image in found}) == len(cases)


def test_36_images_show_the_colours_of_the_given_ones(desk):
    """The prompt says nothing, and the shipped adapter was trained on such images."""
    scenes = grid_scenes()[:: len(grid_scenes()) // 36][:36]
    jobs = [
        {"model": "flux-tiny", "prompt": "a", "seed": seed}
        | {"ip_adapter": {"image": as_png(draw(scene))}}
        for seed, scene in enumerate(scenes)
    ]
    verdicts = [check(*pair) for pair in zip(run(desk, *jobs), scenes, strict=True)]
    colours = share([each.colour and each.background for each in verdicts])
    shapes = share([each.shape for each in verdicts])
    print(f"\nflux-tiny, 36 images: both colours {colours:.0%}, shape {shapes:.0%}")
    assert colours >= 0.95
    assert shapes >= 0.75


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """SD 1.5 with the adapter that ships, which was trained with images of such scenes."""
    worker = build_tiny_worker(
        tmp_path_factory.mktemp("shipped"), PIXPOD_MODELS="sd15-tiny", PIXPOD_PRECISION="float32"
    )
    worker.start()
    yield Desk(worker)
    worker.stop()


def shown_scenes(desk, scenes, **changes):
    """Show images of scenes to SD 1.5 in one batch, without words, and check what it generates."""
    model = loaded_of(desk, "sd15-tiny")
    options = make_image_prompt(adapter=ADAPTER, encoder="clip-vision-tiny", size_px=64)
    plain = model.spec.default_request(prompt="a", image_prompt=options, **changes)
    shown = [as_input(Image.fromarray(draw(scene)), options.size_px) for scene in scenes]
    requests = [
        replace(plain, seeds=(seed,), conditions=Conditions(prompt_images=(image,)))
        for seed, image in enumerate(shown)
    ]
    found = LocalRunner(model).generate(*requests).pixels
    images = [np.frombuffer(each, np.uint8).reshape(64, 64, 3) for each in found]
    return [check(*pair) for pair in zip(images, scenes, strict=True)]


def test_eight_images_in_a_batch_come_back(shipped):
    """Each row has the colours of the image that it is shown, and mostly the shape."""
    verdicts = shown_scenes(shipped, EIGHT)
    assert all(each.background and each.colour for each in verdicts), verdicts
    assert share([each.shape for each in verdicts]) >= 0.75


@pytest.mark.acceptance
def test_224_images_come_back(shipped):
    """Some combinations of colours and shape were never seen in training."""
    scenes, size = grid_scenes(), len(EIGHT)
    batches = [scenes[first : first + size] for first in range(0, len(scenes), size)]
    verdicts = [each for batch in batches for each in shown_scenes(shipped, batch)]
    names = ("background", "colour", "shape", "position")
    found = {name: share([getattr(each, name) for each in verdicts]) for name in names}
    print(f"\nsd15-tiny, {len(verdicts)} images: {found}")
    assert found["background"] >= 0.95
    assert found["colour"] >= 0.92
    assert found["shape"] >= 0.57


@pytest.mark.parametrize("model", MODELS)
def test_images_and_scale_decide_and_nothing_stays(desk, model):
    plain, shown, other, weak, none, again = (
        run(desk, each)[0]
        for each in (
            job(model),
            job(model, IMAGES[0]),
            job(model, IMAGES[1]),
            job(model, IMAGES[0], scale=0.3),
            job(model, IMAGES[0], scale=0),
            job(model),
        )
    )
    assert len({each.tobytes() for each in (plain, shown, other, weak)}) == 4
    assert largest_difference([shown], [other]) > 8
    assert np.array_equal(none, plain)
    assert np.array_equal(again, plain)


@pytest.mark.parametrize("model", MODELS)
def test_row_does_not_depend_on_the_others_of_its_batch(desk, model):
    jobs = [
        job(model, IMAGES[number % 3], scale=0.4 + number / 10, seed=number) for number in range(4)
    ]
    together = run(desk, *jobs)
    alone = [run(desk, each | {"deterministic": True})[0] for each in jobs]
    assert largest_difference(together, alone) <= 1


def test_image_encoder_runs_once_for_each_image(desk):
    """The tokens of no image, which guidance needs, are a second run, for all models and jobs."""
    forward, seen = CLIPVisionModelWithProjection.forward, []

    def count(self, pixels, **options):
        seen.append(pixels)
        return forward(self, pixels, **options)

    jobs = [job(model, random_image(77)) for model in ("sd15-tiny", "sdxl-tiny")] * 2
    run(desk, *(job(model, IMAGES[0]) for model in ("sd15-tiny", "sdxl-tiny")))
    with mock.patch.object(CLIPVisionModelWithProjection, "forward", count):
        run(desk, *jobs)
        run(desk, job("sd15-tiny", random_image(77), seed=9))
        assert len(seen) == 1
        run(desk, job("sd15-tiny", random_image(78)))
        assert len(seen) == 2


@pytest.mark.parametrize("model", MODELS)
def test_components_of_plain_jobs_are_never_changed(desk, model):
    loaded = desk.worker.engine.loader.load(model).result().loaded
    run(desk, job(model), job(model, IMAGES[0]))
    before = snapshot_of(loaded)
    run(desk, job(model, IMAGES[1], scale=0.5), job(model))
    assert snapshot_of(loaded) == before


def test_lora_and_control_go_with_an_image_prompt(desk, files, lora_dir):
    """As stock diffusers makes it with the LoRA merged into the weights."""
    [case] = cases(1)
    loras = [{"source": "sd15-tiny", "scale": 0.7}]
    [found] = run(
        desk, job("sd15-tiny", IMAGES[0], loras=loras, controlnets=[case.control(scale=0.8)])
    )
    net = SOURCE_WEIGHTS_DIR / "tiny" / "extras" / "sd15-canny-tiny"
    stock = Stock("sd15-tiny", files, ControlNetModel.from_pretrained(net))
    merge(lora_dir / "sd15-tiny.safetensors", stock.model, 0.7)
    expected = stock.generate(
        PROMPT,
        [IMAGES[0]],
        1.0,
        seed=1,
        image=Image.fromarray(case.drawn()),
        controlnet_conditioning_scale=0.8,
        num_inference_steps=STEPS,
        guidance_scale=stock.model.spec.defaults.guidance_scale,
    )
    assert largest_difference([found], [expected]) <= 1


def merge(lora, model, scale):
    with torch.no_grad():
        for name, pair in read_adapter(lora_file(lora), model).of("unet").items():
            weight = model.denoiser.get_submodule(name).weight
            weight += scale * torch.einsum("or,r...->o...", pair.up, pair.down).view_as(weight)


@pytest.mark.parametrize("model", MODELS)
def test_everything_goes_with_an_image_prompt(desk, model):
    """LoRA, control, image and mask: each has its effect, and none at a scale of zero."""
    [case] = cases(1)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    given = {"image": as_png(case.given), "mask": as_png(mask), "strength": 0.9}

    def parts(lora=0.0, control=0.0):
        loras = [{"source": model, "scale": lora}]
        return given | {"loras": loras, "controlnets": [case.control(scale=control)]}

    plain, without, none, adapted, controlled = run(
        desk,
        job(model, IMAGES[0], **given),
        job(model, **given),
        job(model, IMAGES[0], **parts()),
        job(model, IMAGES[0], **parts(lora=3.0)),
        job(model, IMAGES[0], **parts(control=1.0)),
    )
    assert largest_difference([none], [plain]) <= 1
    for other in (without, adapted, controlled):
        assert largest_difference([plain], [other]) > 8
    assert np.array_equal(plain[:, :32], case.given[:, :32])


def test_bad_images_are_refused_by_their_places_and_fail_their_own_job_only(desk):
    broken = {"images": [as_png(np.asarray(IMAGES[0])), "bm8gaW1hZ2U="]}
    bad = job("sd15-tiny") | {"ip_adapter": broken}
    alone = job("sd15-tiny") | {"ip_adapter": {"image": "bm8gaW1hZ2U=", "scale": 0}}
    replies = desk.replies([bad, job("sd15-tiny", IMAGES[0]), alone])
    for reply, field in ((replies[0], "ip_adapter.images[1]"), (replies[2], "ip_adapter.image")):
        code, _, problems = reply["error"].partition(": ")
        assert code == "image_refused"
        assert [each["field"] for each in json.loads(problems)["problems"]] == [field]
    images_of([replies[1]])


def test_reply_file_and_description_name_the_image_prompt(desk):
    [reply] = desk.replies([job("sdxl-tiny", IMAGES[0], IMAGES[1], scale=0.5)])
    used = {"name": "sdxl-plus", "encoder": ENCODER, "images": 2, "scale": 0.5}
    assert reply["ip_adapter"] == used
    assert reply["timings_ms"]["denoise"] > 0
    file = Image.open(io.BytesIO(base64.b64decode(reply["images"][0]["data"])))
    assert 'IP-Adapter: "Model: sdxl-plus, Weight: 0.5, Images: 2"' in file.info["parameters"]
    assert desk.replies([job("sdxl-tiny")])[0]["ip_adapter"] is None
    described = desk.reply(describe=True)
    models = {model["name"]: model for model in described["models"]}
    assert {name: models[name]["image_prompts"] for name in MODELS} == {
        name: [adapter] for name, adapter in ADAPTERS.items()
    }
    encoder = next(extra for extra in described["extras"] if extra["name"] == ENCODER)
    assert (encoder["family"], encoder["models"]) == (None, ["sdxl-tiny", "sd15-tiny"])


def loaded_of(desk, model):
    run(desk, job(model, IMAGES[0]))
    return desk.worker.engine.loader.load(model).result().loaded


def test_adapter_that_was_made_for_something_else_is_refused_with_the_reason(desk):
    sd15, sdxl, flux = (loaded_of(desk, model) for model in ("sd15-tiny", "sdxl-tiny", "flux-tiny"))
    prompt = make_image_prompt(adapter="it", encoder=ENCODER)

    own_key = extra_key("it", Precision.FLOAT32)

    def refusal(model, **extras):
        extras = {name: LoadedExtra(module=each, key=own_key) for name, each in extras.items()}
        found = replace(model, extras=model.extras | extras)
        with pytest.raises(ModelUnavailable) as caught:
            calls_of(model.spec.family).check_image_prompt(found, prompt)
        return str(caught.value)

    other = sdxl.extras["sdxl-plus"].module
    assert "it does not go with sd15-tiny: it has a layer of " in refusal(sd15, it=other)
    short = copy.copy(other)
    short._modules = {**other._modules, "attentions": other.attentions[:3]}
    assert "it has 3 layers, and the UNet 7" in refusal(sd15, it=short)
    config = SimpleNamespace(image_size=224, hidden_size=99)
    encoder = {ENCODER: SimpleNamespace(config=config)}
    own = sd15.extras["sd15-plus"].module
    assert f"expected 99 channels for the encoder {ENCODER}, got 32" in refusal(
        sd15, it=own, **encoder
    )
    config.image_size = 336
    assert "for 224 pixels a side, got one for 336" in refusal(sd15, it=own, **encoder)
    redux = copy.deepcopy(flux.extras["flux-redux-tiny"].module)
    redux.image_embedder.register_to_config(txt_in_features=7)
    assert "for 224 pixels a side, got one for 64" in refusal(flux, it=redux)
    prompt = replace(prompt, size_px=64)
    assert "expected 64 channels for flux-tiny, got 7" in refusal(flux, it=redux)


def test_files_are_baked_as_they_are_published(files, weights, tmp_path):
    manifest, extras = read_manifest(weights), load_extras(EXTRAS_FILE)
    assert verify_directory(weights, manifest, {}, lambda size: None, extras) == []
    name = FILES["sdxl"]
    published, baked = load_file(files / name), load_file(weights / "sdxl-plus" / name)
    assert published.keys() == baked.keys()
    assert all(torch.equal(published[each], baked[each]) for each in baked)
    save_file({"image_proj.proj.weight": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ModelUnavailable, match="expected an IP-Adapter Plus"):
        options = SourceOptions(location=str(tmp_path), own_models=tmp_path)
        bake_extra(tmp_path / "to", extras["sdxl-plus"], Precision.FLOAT16, options, 10**9)


@pytest.mark.acceptance
def test_no_graph_is_compiled_for_other_images_or_scales(desk, tmp_path):
    model = loaded_of(desk, "sd15-tiny")
    store = CompiledStore(tmp_path / "none", untrusted=())

    def compile_copy(model):
        return compile_model(model, store, backend="eager", only=(model.spec.family.denoiser,))

    runner = LocalRunner(model, compile_copy=compile_copy)

    def request(scale, *images):
        options = make_image_prompt(
            adapter="sd15-plus", encoder=ENCODER, num_images=len(images), scale=scale
        )
        plain = model.spec.default_request(num_inference_steps=1, image_prompt=options)
        return replace(plain, conditions=Conditions(prompt_images=tuple(map(as_input, images))))

    torch._dynamo.reset()
    counters.clear()
    images = runner.generate(request(0.5, IMAGES[0]), request(1.0, IMAGES[1]))
    num_graphs = count_graphs()
    assert num_graphs > 0
    assert images.warnings == ()
    second = runner.generate(request(1.0, IMAGES[1]), request(0.3, IMAGES[2])).pixels
    runner.generate(request(1.0, IMAGES[1], IMAGES[2]), request(0.3, IMAGES[2], IMAGES[0]))
    assert count_graphs() == num_graphs
    assert images.pixels[1] != second[1]


def as_input(image, side=224):
    raw = RawImage(width=image.width, height=image.height, pixels=image.tobytes())
    return fit_prompt_image(raw, side, SD15)


def test_extras_come_and_go_with_little_memory(desk, weights, tmp_path):
    """The limit has room for each stage, but not for all components at once."""
    [roomy] = run(desk, job("sd15-tiny", IMAGES[0]))
    worker = build_tiny_worker(
        tmp_path,
        PIXPOD_MODELS="sd15-tiny",
        PIXPOD_WEIGHTS_DIR=str(weights),
        PIXPOD_CATALOG=str(EXTRAS_FILE),
        PIXPOD_EXTRAS="sd15-plus",
        PIXPOD_PRECISION="float32",
        PIXPOD_MEMORY_LIMIT_GB="1.516",
    )
    worker.start()
    for _ in range(2):
        [reply] = Desk(worker).replies([job("sd15-tiny", IMAGES[0])])
        assert np.array_equal(images_of([reply])[0], roomy)
        assert reply["timings_ms"]["onload"] > 0
    worker.stop()

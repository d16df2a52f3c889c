"""FLUX.1 Kontext and Fill: random transformers of the tiny FLUX's size change images."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from diffusers import FluxFillPipeline, FluxKontextPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from support.condition_images import as_base64
from support.feature_jobs import check_features, feature_desk
from support.flux_variants import NAME, bake_variant, write_entry, write_repository
from support.tiny_models import to_pixels
from support.variant_runs import ImageEditor, noise_images

from pixpod.engine.compilation.compile import compile_model
from pixpod.engine.compilation.store import CompiledStore
from pixpod.engine.memory.budget import Budget
from pixpod.engine.memory.needs import need_of
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.families import FAMILIES, Precision
from pixpod.job import Mode
from pixpod.methods import StageName

KONTEXT, FILL = "flux-kontext", "flux-fill"
TRANSFORMERS = {KONTEXT: {}, FILL: {"in_channels": 384, "out_channels": 64}}
FLOAT32 = QuantizationPlan(precision=Precision.FLOAT32)
FLOAT8 = QuantizationPlan(precision=Precision.FLOAT8_DYNAMIC)
PROMPTS = ("make it red", "turn the square into a circle")
IMAGES = noise_images(2)
MASKS = [np.zeros((64, 64), np.uint8) for _ in range(2)]
MASKS[0][16:40, 16:56] = 255
MASKS[1][3:33, 30:] = 255


@dataclass
class Variant:
    """A family with its weights and an editor that runs them in float32."""

    family: str
    root: object
    editor: ImageEditor

    def requests(self, images=IMAGES, **changes):
        mode = FAMILIES[self.family].default_mode
        masks = MASKS if mode is Mode.INPAINT else (None, None)
        rows = zip(PROMPTS, images, masks, strict=True)
        return [self.editor.request(mode, *row, seed=n, **changes) for n, row in enumerate(rows)]


@pytest.fixture(scope="module", params=[KONTEXT, FILL])
def variant(request, tmp_path_factory):
    family = request.param
    root = tmp_path_factory.mktemp(family)
    write_repository(root / "repository", family, TRANSFORMERS[family])
    spec = write_entry(root / "models.toml", family)
    bake_variant(root / "float32", root / "repository", spec, FLOAT32)
    bake_variant(root / "float8", root / "repository", spec, FLOAT8)
    return Variant(family, root, ImageEditor(spec, root / "float32", FLOAT32))


@pytest.fixture(scope="module")
def together(variant):
    return variant.editor.generate(variant.requests())


@pytest.fixture(scope="module")
def stock(variant):
    pipeline_class = {KONTEXT: FluxKontextPipeline, FILL: FluxFillPipeline}[variant.family]
    pipe = pipeline_class.from_pretrained(variant.root / "repository", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock_images(pipe, **options):
    """What diffusers' own pipeline makes of the same requests, as the models' cards use it."""
    if isinstance(pipe, FluxKontextPipeline):
        options |= {"max_area": 64 * 64, "_auto_resize": False}
    else:
        options |= {"mask_image": torch.from_numpy(np.stack(MASKS))[:, None].float() / 255}
    with torch.inference_mode():
        found = pipe(
            image=torch.from_numpy(np.stack(IMAGES)).permute(0, 3, 1, 2).float() / 255,
            prompt=list(PROMPTS),
            width=64,
            height=64,
            num_inference_steps=3,
            guidance_scale=3.5,
            max_sequence_length=48,
            generator=[torch.Generator().manual_seed(seed) for seed in range(2)],
            output_type="np",
            **options,
        ).images
    return (found * 255).round().astype(int)


@pytest.fixture
def exact_stock(stock, monkeypatch):
    """The pipeline of Fill samples from the VAE's distribution, for which it takes numbers from
    the generators; ours are left for the noise.
    """
    mode = DiagonalGaussianDistribution.mode
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator: mode(self))
    return stock


def shown(images, variant):
    """What a request changes: all of an image, or what its mask marks."""
    if variant.family == KONTEXT:
        return np.stack(images)
    return np.where(np.stack(MASKS)[..., None] == 255, np.stack(images), 0)


def test_images_of_a_batch_are_those_of_stock_diffusers(variant, together, exact_stock):
    expected = stock_images(exact_stock)
    assert np.abs(shown(together, variant) - shown(expected, variant)).max() <= 1


def test_strength_of_fill_is_that_of_stock_diffusers(variant, together, exact_stock):
    if variant.family == KONTEXT:
        pytest.skip("edits have no strength")
    found = shown(variant.editor.generate(variant.requests(strength=0.6)), variant)
    assert np.abs(found - shown(stock_images(exact_stock, strength=0.6), variant)).max() <= 1
    assert np.abs(found - shown(together, variant)).max() > 8


def test_row_of_a_batch_equals_the_image_alone(variant, together):
    for row, request in zip(together, variant.requests(), strict=True):
        (alone,) = variant.editor.generate([request])
        assert np.abs(alone - row).max() <= 1


def test_image_decides_about_the_result(variant, together):
    other = variant.editor.generate(variant.requests(images=IMAGES[::-1]))
    changed = np.abs(shown(other, variant) - shown(together, variant))
    assert changed.max(axis=(1, 2, 3)).min() > 8


def test_outside_of_the_mask_are_the_pixels_of_the_image(variant, together):
    if variant.family == KONTEXT:
        pytest.skip("edits have no mask")
    for row, image, mask in zip(together, IMAGES, MASKS, strict=True):
        assert np.array_equal(row[mask == 0], image[mask == 0])
        assert (row[mask == 255] != image[mask == 255]).mean() > 0.9


def test_memory_of_an_edit_is_for_the_tokens_of_both_images(variant):
    if variant.family == FILL:
        pytest.skip("Fill sees images by further channels")
    denoise = {
        mode: variant.editor.denoising(mode).image_bytes for mode in (Mode.EDIT, Mode.TEXT_TO_IMAGE)
    }
    assert denoise[Mode.EDIT] == 2 * denoise[Mode.TEXT_TO_IMAGE]


def test_plan_offloads_stage_by_stage_and_changes_no_pixel(variant, together):
    editor = variant.editor
    need = need_of(editor.spec, FLOAT32, editor.weights, editor.load().keys)
    assert StageName.IMAGE_ENCODE in [stage.name for stage in need.stages]
    largest = max(need.stage_bytes(stage) for stage in need.stages)
    plan = make_plan([need], Budget(gpu_bytes=largest, overhead_bytes=0))
    assert plan.offloaded
    assert np.array_equal(editor.generate(variant.requests(), plan=plan), together)


def test_regions_are_compiled_and_change_no_pixel(variant, together, tmp_path):
    model = variant.editor.load()
    compilation = compile_model(model, CompiledStore(tmp_path), backend="eager")
    model = replace(model, compilation=compilation)
    assert np.array_equal(variant.editor.generate(variant.requests(), model=model), together)
    assert compilation.modes == {"transformer": "jit", "vae": "jit"}
    assert compilation.warnings == []


@pytest.fixture(scope="module")
def desk(variant, tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    with feature_desk(NAME, variant.editor.load(), variant.root, folder) as desk:
        yield desk


def test_job_runs_in_float8_at_its_size_and_encodes_an_image_once(variant, desk):
    given = {"model": NAME, "prompt": PROMPTS[0], "seed": 1, "num_inference_steps": 3}
    given["image"] = as_base64(IMAGES[0])
    if variant.family == FILL:
        given["mask"] = as_base64(MASKS[0])
    first, second = desk.reply(**given), desk.reply(**given | {"prompt": PROMPTS[1]})
    assert "error" not in first, first
    assert first["model"]["precision"] == "float8_dynamic"
    assert "image_encode" in first["timings_ms"]
    assert "image_encode" not in second["timings_ms"]
    sized = desk.reply(**given, width=96, height=48)
    assert to_pixels(sized["images"][0]).shape == (48, 96, 3)


def test_each_feature_ends_as_the_table_says(variant, desk):
    check_features(desk, NAME, variant.family)

"""What is baked is what stock diffusers and transformers load, bit for bit."""

import functools
import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from support.broken_weights import flip
from torch import nn
from torchao.quantization import Float8Tensor
from transformers import T5EncoderModel

from pixpod import families
from pixpod.catalog import load_catalog
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.engine.precision.quantization import quantize_float8_dynamic
from pixpod.errors import InvalidSettings, ModelUnavailable, WeightsUnreadable
from pixpod.families import Precision
from pixpod.weights.manifest import read_manifest
from pixpod_tools.bake.bake import bake, bake_random
from pixpod_tools.bake.parts import float8_parts
from pixpod_tools.bake.random_cache import find_architecture, plan_model
from pixpod_tools.bake.recipes import ModelRecipe
from pixpod_tools.bake.sources import SourceOptions
from pixpod_tools.bake.verify import verify_directory

CACHE = Path(__file__).resolve().parents[2] / "model_cache"
SOURCE = CACHE / "tiny" / "flux-tiny"
CATALOG = load_catalog()
FLOAT8 = Precision.FLOAT8_DYNAMIC
BFLOAT16 = Precision.BFLOAT16
CPU = torch.device("cpu")
VAE = "vae/diffusion_pytorch_model.safetensors"
ONE_SHARD = 4_000_000_000
MANY_SHARDS = 300_000

assert families.FLUX.quantization is not None
QUANTIZATION = families.FLUX.quantization

FLUX = ModelRecipe(model="flux-tiny", plan=QuantizationPlan(precision=FLOAT8, t5=FLOAT8))


def bake_tiny(directory, recipe=FLUX, max_shard_bytes=ONE_SHARD, **options):
    source = SourceOptions(**{"location": None, "own_models": CACHE, **options})
    bake(directory, recipe, CATALOG, source, max_shard_bytes)
    return directory / recipe.model


@pytest.fixture(scope="module")
def baked(tmp_path_factory):
    """A model's folder by recipe and shard size; each is baked once."""

    @functools.cache
    def get(recipe=FLUX, max_shard_bytes=ONE_SHARD):
        return bake_tiny(tmp_path_factory.mktemp("weights"), recipe, max_shard_bytes)

    return get


def headers(folder):
    """The header and the place of the data of each shard, in their order."""
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        size_bytes = struct.unpack("<Q", data[:8])[0]
        yield json.loads(data[8 : 8 + size_bytes]), 8 + size_bytes


def bits(tensor):
    """What makes a tensor, as integers: NaN is equal to itself here."""
    if isinstance(tensor, Float8Tensor):
        return [tensor.qdata.view(torch.uint8), tensor.scale.view(torch.int32)]
    return [tensor.detach().contiguous().flatten().view(torch.uint8)]


def assert_same(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert type(found[name]) is type(tensor), name
        assert all(map(torch.equal, bits(found[name]), bits(tensor))), name


@pytest.fixture(scope="module")
def whole_float8():
    """The transformer read and quantised as a whole, as a worker does that has 16-bit weights."""
    transformer = FluxTransformer2DModel.from_pretrained(
        SOURCE / "transformer", dtype=torch.bfloat16
    )
    quantize_float8_dynamic(transformer, CPU, QUANTIZATION)
    return transformer


@pytest.mark.parametrize("max_shard_bytes", [ONE_SHARD, MANY_SHARDS], ids=["one", "many"])
def test_stock_diffusers_loads_what_quantising_the_whole_gives(
    baked, whole_float8, max_shard_bytes
):
    folder = baked(FLUX, max_shard_bytes) / "transformer"
    assert (len(list(folder.glob("*.safetensors"))) > 3) == (max_shard_bytes == MANY_SHARDS)
    transformer = FluxTransformer2DModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert_same(transformer, whole_float8)
    kept = QUANTIZATION.keep_16_bit
    assert {type(p) for n, p in transformer.named_parameters() if n.split(".")[0] in kept} == {
        nn.Parameter
    }


@pytest.mark.parametrize("max_shard_bytes", [ONE_SHARD, 30_000], ids=["one", "many"])
def test_stock_transformers_loads_what_quantising_t5_gives(baked, max_shard_bytes):
    expected = T5EncoderModel.from_pretrained(SOURCE / "text_encoder_2", dtype=torch.bfloat16)
    quantize_float8_dynamic(expected, CPU)
    folder = baked(FLUX, max_shard_bytes) / "text_encoder_2"
    t5 = T5EncoderModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert_same(t5, expected)
    assert isinstance(t5.encoder.block[0].layer[1].DenseReluDense.wo.weight, Float8Tensor)
    ids = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(t5(ids).last_hidden_state, expected(ids).last_hidden_state)


def test_adaln_stays_in_16_bits_if_the_profile_says_so(baked):
    recipe = replace(FLUX, plan=replace(FLUX.plan, adaln=BFLOAT16))
    folder = baked(recipe) / "transformer"
    transformer = FluxTransformer2DModel.from_pretrained(folder, dtype=torch.bfloat16)
    modulation = {
        name: type(layer.weight)
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear) and (".norm1" in name or ".norm." in name)
    }
    assert set(modulation.values()) == {nn.Parameter}
    blocks = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
    assert len(modulation) == 2 * blocks[0] + blocks[1]
    assert isinstance(transformer.single_transformer_blocks[0].proj_mlp.weight, Float8Tensor)


@pytest.mark.parametrize("rows", [16, 1024, 2064])
def test_large_weight_is_quantised_slab_by_slab_to_the_same_bits(rows):
    weight = torch.randn(rows, 1040, generator=torch.Generator().manual_seed(0)).bfloat16()
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = nn.Parameter(weight)
    quantize_float8_dynamic(layer, CPU)
    parts = float8_parts("blocks.0.to_q.weight", weight)
    assert set(parts) == {"blocks.0.to_q._weight_qdata", "blocks.0.to_q._weight_scale"}
    assert all(map(torch.equal, (bits(part)[0] for part in parts.values()), bits_of(layer.weight)))


def bits_of(weight):
    return [part.flatten().view(torch.uint8) for part in bits(weight)]


@pytest.mark.parametrize("component", ["transformer", "text_encoder_2"])
def test_each_shard_says_all_of_torchao_and_keeps_a_tensor_whole(baked, component):
    shards = list(headers(baked(FLUX, 30_000) / component))
    assert len(shards) > 2
    metadata = [header.pop("__metadata__") for header, _ in shards]
    assert all(each == metadata[0] for each in metadata)
    assert set(metadata[0]) - {"format", "tensor_names"} == set(
        json.loads(metadata[0]["tensor_names"])
    )
    for header, _ in shards:
        values = {name.removesuffix("_qdata") for name in header if name.endswith("_qdata")}
        assert values == {name.removesuffix("_scale") for name in header if name.endswith("_scale")}


@pytest.mark.parametrize("max_shard_bytes", [ONE_SHARD, MANY_SHARDS], ids=["one", "many"])
def test_tensors_begin_where_a_gpu_likes_them(baked, max_shard_bytes):
    for folder in baked(FLUX, max_shard_bytes).iterdir():
        for header, begin in headers(folder) if folder.is_dir() else ():
            header.pop("__metadata__")
            assert begin % 4096 == 0
            widths = {"F32": 4, "BF16": 2, "F8_E4M3": 1}
            odd = [
                field
                for field in header.values()
                if (field["data_offsets"][1] - field["data_offsets"][0]) % 64
            ]
            for field in header.values():
                step = widths[field["dtype"]] if field in odd else 64
                assert field["data_offsets"][0] % step == 0


def test_shards_are_in_the_order_in_which_a_forward_pass_needs_them(baked):
    folder = baked(FLUX, MANY_SHARDS) / "transformer"
    met = [
        name.split(".")[0]
        for header, _ in headers(folder)
        for name in header
        if name != "__metadata__" and not name.endswith("norm_added_k.weight")
    ]
    order = (
        *("x_embedder", "time_text_embed", "context_embedder"),
        *("transformer_blocks", "single_transformer_blocks", "norm_out", "proj_out"),
    )
    places = [order.index(name) for name in met]
    # tensors of odd sizes come last in their shard, so that the others are aligned
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("model", "pipeline_class"),
    [("sdxl-tiny", StableDiffusionXLPipeline), ("sd15-tiny", StableDiffusionPipeline)],
)
def test_stock_pipeline_of_baked_files_is_that_of_the_source(baked, model, pipeline_class):
    recipe = ModelRecipe(model=model, plan=QuantizationPlan(precision=BFLOAT16))
    found = pipeline_class.from_pretrained(baked(recipe, MANY_SHARDS), dtype=torch.bfloat16)
    expected = pipeline_class.from_pretrained(CACHE / "tiny" / model, dtype=torch.bfloat16)
    for name, component in expected.components.items():
        if isinstance(component, nn.Module):
            assert_same(found.components[name], component)


def test_stock_pipeline_generates_from_baked_float8(baked):
    pipe = DiffusionPipeline.from_pretrained(baked(), dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    generated = pipe("a red circle", width=32, height=32, num_inference_steps=1, output_type="np")
    assert generated.images.shape == (1, 32, 32, 3)
    assert generated.images.std() > 0


def test_float16_is_cast_from_what_the_source_has(baked):
    recipe = ModelRecipe(model="sd15-tiny", plan=QuantizationPlan(precision=Precision.FLOAT16))
    (header, _), *_ = headers(baked(recipe) / "unet")
    assert {field["dtype"] for name, field in header.items() if name != "__metadata__"} == {"F16"}


# --- the weights directory ------------------------------------------------------------------


def test_manifest_says_what_was_made_and_of_what(baked):
    directory = baked().parent
    manifest = read_manifest(directory)
    entry = manifest["flux-tiny"]
    assert (entry.revision, entry.licence, entry.precision) == ("1", "MIT", FLOAT8)
    assert "norm_out" in str(entry.recipe)
    assert "T5 in float8_dynamic" in str(entry.recipe)
    assert {"torch", "torchao", "diffusers", "transformers", "pixpod"} <= set(entry.versions or ())
    assert [file.path for file in entry.files if file.chunks] == [
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert verify_directory(directory, manifest, CATALOG, lambda size_bytes: None) == []
    assert (baked() / "README.md").is_file()
    assert "README.md" not in {file.path for file in entry.files}


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_model_that_is_there_already_is_left_alone(tmp_path):
    folder = bake_tiny(tmp_path)
    before = stamps(tmp_path)
    bake_tiny(tmp_path)
    assert stamps(tmp_path) == before
    damaged = folder / "vae/config.json"
    damaged.write_text("{}", encoding="utf-8")
    bake_tiny(tmp_path)
    assert damaged.read_text(encoding="utf-8") != "{}"
    bake_tiny(tmp_path, replace(FLUX, plan=replace(FLUX.plan, t5=BFLOAT16)))
    assert "T5 in bfloat16" in str(read_manifest(tmp_path)["flux-tiny"].recipe)


def test_second_model_is_added_to_the_manifest(tmp_path):
    bake_tiny(tmp_path)
    bake_tiny(tmp_path, ModelRecipe(model="sd15-tiny", plan=QuantizationPlan(precision=BFLOAT16)))
    manifest = read_manifest(tmp_path)
    assert list(manifest) == ["flux-tiny", "sd15-tiny"]
    assert verify_directory(tmp_path, manifest, CATALOG, lambda size_bytes: None) == []


def test_tensors_that_models_have_in_common_are_there_once(tmp_path):
    """The tiny models have the same VAE. Each may go without the other."""
    sdxl, sd15 = (
        bake_tiny(
            tmp_path, ModelRecipe(model=name, plan=QuantizationPlan(precision=Precision.FLOAT32))
        )
        for name in ("sdxl-tiny", "sd15-tiny")
    )
    assert (sdxl / VAE).samefile(sd15 / VAE)
    shutil.rmtree(sdxl)
    bake_tiny(
        tmp_path, ModelRecipe(model="sdxl-tiny", plan=QuantizationPlan(precision=Precision.FLOAT32))
    )
    assert (sdxl / VAE).samefile(sd15 / VAE)
    manifest = read_manifest(tmp_path)
    assert verify_directory(tmp_path, manifest, CATALOG, lambda size_bytes: None) == []


def test_damaged_copy_is_not_linked_to(tmp_path):
    sdxl = bake_tiny(
        tmp_path, ModelRecipe(model="sdxl-tiny", plan=QuantizationPlan(precision=Precision.FLOAT32))
    )
    flip(sdxl / VAE)
    sd15 = bake_tiny(
        tmp_path, ModelRecipe(model="sd15-tiny", plan=QuantizationPlan(precision=Precision.FLOAT32))
    )
    assert not (sdxl / VAE).samefile(sd15 / VAE)
    manifest = {"sd15-tiny": read_manifest(tmp_path)["sd15-tiny"]}
    assert verify_directory(tmp_path, manifest, CATALOG, lambda size_bytes: None) == []


def copy_of_source(to, **changed):
    """The source with some of its files replaced."""
    for path in SOURCE.rglob("*.*"):
        target = to / path.relative_to(SOURCE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(changed.get(target.name, path.read_bytes()))
    for link in ("vae", "tokenizer"):
        (to / link).mkdir(exist_ok=True)
        for path in (SOURCE / link).iterdir():
            (to / link / path.name).write_bytes(path.read_bytes())
    return to


def test_broken_bake_claims_nothing_and_goes_on_where_it_stopped(tmp_path):
    source = copy_of_source(tmp_path / "source")
    weights = source / "vae/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    directory = tmp_path / "weights"
    with pytest.raises(WeightsUnreadable, match="vae"):
        bake_tiny(directory, location=str(source), revision="1")
    assert not (directory / "manifest.toml").exists()
    done = directory / "flux-tiny.part/transformer"
    before = stamps(done)
    weights.write_bytes(whole)
    folder = bake_tiny(directory, location=str(source), revision="1")
    assert list(stamps(folder / "transformer").values()) == list(before.values())
    assert read_manifest(directory).keys() == {"flux-tiny"}
    assert not done.exists()


def test_what_another_recipe_left_behind_is_not_used(tmp_path):
    source = copy_of_source(tmp_path / "source")
    weights = source / "vae/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"")
    directory = tmp_path / "weights"
    with pytest.raises(WeightsUnreadable):
        bake_tiny(
            directory,
            replace(FLUX, plan=replace(FLUX.plan, adaln=BFLOAT16)),
            location=str(source),
            revision="1",
        )
    weights.write_bytes(whole)
    folder = bake_tiny(directory, location=str(source), revision="1")
    (header, _), *_ = headers(folder / "transformer")
    assert "transformer_blocks.0.norm1.linear._weight_qdata" in header


def test_source_that_is_quantised_is_refused(baked, tmp_path):
    with pytest.raises(ModelUnavailable, match="quantised already"):
        bake_tiny(tmp_path, location=str(baked()))


def test_source_of_another_family_is_refused(tmp_path):
    with pytest.raises(ModelUnavailable, match="text_encoder_2"):
        bake_tiny(tmp_path, location=str(CACHE / "tiny/sd15-tiny"))


def test_licence_text_is_kept_beside_the_weights(tmp_path):
    source = copy_of_source(tmp_path / "source")
    (source / "LICENSE.md").write_text("terms", encoding="utf-8")
    folder = bake_tiny(tmp_path / "weights", location=str(source), revision="1")
    assert (folder / "LICENSE.md").read_text(encoding="utf-8") == "terms"


def test_vae_of_another_folder_is_put_in_place_of_the_models(tmp_path):
    vae = tmp_path / "vae"
    vae.mkdir()
    for path in (SOURCE / "vae").iterdir():
        (vae / path.name).write_bytes(path.read_bytes())
    config = json.loads((vae / "config.json").read_text(encoding="utf-8"))
    (vae / "config.json").write_text(
        json.dumps({**config, "scaling_factor": 0.5}), encoding="utf-8"
    )
    folder = bake_tiny(tmp_path / "weights", vae=vae)
    found = json.loads((folder / "vae/config.json").read_text(encoding="utf-8"))
    assert found["scaling_factor"] == 0.5
    assert "VAE of" in str(read_manifest(tmp_path / "weights")["flux-tiny"].recipe)


# --- random weights -------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [FLOAT8, BFLOAT16])
def test_random_model_generates_finite_noise(tmp_path, precision):
    recipe = ModelRecipe(
        model="flux-tiny", plan=QuantizationPlan(precision=precision, t5=precision)
    )
    bake_random(tmp_path, recipe, None, 1_000_000)
    manifest = read_manifest(tmp_path)
    assert manifest["flux-tiny"].revision == "random"
    assert verify_directory(tmp_path, manifest, CATALOG, lambda size_bytes: None) == []
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "flux-tiny", dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    generated = pipe("abc", width=32, height=32, num_inference_steps=1, output_type="pt")
    assert torch.isfinite(generated.images).all()
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight
    weight = weight.dequantize() if precision is FLOAT8 else weight
    assert 0.019 < weight.float().std() < 0.021


def test_random_model_of_a_given_size_is_near_it():
    size_gb = 4
    recipe = ModelRecipe(model="flux-dev", plan=QuantizationPlan(precision=FLOAT8))
    architecture = find_architecture("flux-dev", size_gb * 10**9)
    components = plan_model(architecture, recipe, size_gb * 10**9)
    total_bytes = sum(component.size_bytes for component in components)
    assert total_bytes == pytest.approx(size_gb * 1e9, rel=0.1)


@pytest.mark.parametrize("name", ["sdxl", "flux-tiny", "nobody"])
def test_size_of_a_model_without_blocks_to_leave_out_is_refused(name):
    with pytest.raises(InvalidSettings, match="expected"):
        find_architecture(name, 10**9)


def test_full_sizes_are_those_of_the_real_models():
    sizes = {
        (name, component.name): component.size_bytes / 1e9
        for name, precision in (("flux-dev", FLOAT8), ("sdxl", Precision.FLOAT16))
        for component in plan_model(
            find_architecture(name, None),
            ModelRecipe(model=name, plan=QuantizationPlan(precision=precision)),
        )
    }
    assert sizes["flux-dev", "transformer"] == pytest.approx(11.9, abs=0.1)
    assert sizes["flux-dev", "text_encoder_2"] == pytest.approx(9.52, abs=0.01)
    assert sizes["sdxl", "unet"] == pytest.approx(5.135, abs=0.001)
    assert sizes["sdxl", "text_encoder_2"] == pytest.approx(1.389, abs=0.001)

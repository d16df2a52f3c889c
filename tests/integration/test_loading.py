"""What is loaded as what: float8 layers, 16-bit layers, a VAE that replaces the one inside."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import loading
from torchao.quantization import Float8Tensor, PerRow, quant_api

from pixpod.engine.model import LoadedModel
from pixpod.errors import WeightsUnreadable
from pixpod.families import FLUX, Precision
from pixpod.settings import SOURCE_WEIGHTS_DIR

TINY = SOURCE_WEIGHTS_DIR / "tiny"
CPU = torch.device("cpu")


def load(name: str, precision: Precision, **changes) -> LoadedModel:
    return loading.load(name, replace(loading.shipped(name), **changes), precision, CPU)


def copy_of(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY / name, tmp_path / name, symlinks=False))


@pytest.fixture(scope="module")
def linears():
    """Weights of all Linear layers of a FLUX transformer in float8, by name."""
    transformer = load("flux-tiny", Precision.FLOAT8_DYNAMIC).components["transformer"]
    return {
        name: module.weight
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


class TestFloat8:
    def test_blocks_are_float8_row_by_row(self, linears):
        blocks = [w for name, w in linears.items() if "transformer_blocks" in name]
        assert len(blocks) > 20
        for weight in blocks:
            assert isinstance(weight, Float8Tensor)
            assert weight.qdata.dtype is torch.float8_e4m3fn
            assert weight.scale.shape == (weight.shape[0], 1)
            assert weight.act_quant_kwargs is not None, "activations are quantised too"

    def test_embedders_and_output_layer_stay_16_bit(self, linears):
        kept = [w for name, w in linears.items() if "transformer_blocks" not in name]
        named = {name.split(".")[0] for name in linears} - {
            "transformer_blocks",
            "single_transformer_blocks",
        }
        assert FLUX.quantization is not None
        assert named == FLUX.quantization.keep_16_bit
        assert {type(weight) for weight in kept} == {torch.nn.Parameter}
        assert {weight.dtype for weight in kept} == {torch.bfloat16}

    def test_vae_and_text_encoders_stay_16_bit(self):
        found = load("flux-tiny", Precision.FLOAT8_DYNAMIC).components
        for part in (found["vae"].encoder, found["text_encoder"], found["text_encoder_2"]):
            assert {parameter.dtype for parameter in part.parameters()} == {torch.bfloat16}
        assert found["vae"].dtype is torch.bfloat16, "what a pipeline gives it"

    def test_images_are_decoded_in_float32_on_a_cpu(self):
        decoder = load("flux-tiny", Precision.FLOAT8_DYNAMIC).components["vae"].decoder
        assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}

    def test_hardware_check_of_torchao_is_back_afterwards(self):
        load("flux-tiny", Precision.FLOAT8_DYNAMIC)
        with pytest.raises(AssertionError, match="CUDA"):
            quant_api._check_hardware_support((PerRow(), PerRow()))


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.BFLOAT16])
def test_every_part_has_the_precision_that_is_reported(precision):
    model = load("sdxl-tiny", precision)
    found = model.components
    parts = (found["unet"], found["vae"].encoder, found["text_encoder"], found["text_encoder_2"])
    expected = getattr(torch, precision)
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {expected}
    assert model.identity.precision == precision


def test_manifest_can_replace_the_vae(tmp_path):
    vae = copy_of("sdxl-tiny", tmp_path) / "vae"
    config = vae / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 64', '"sample_size": 72'))
    model = load("sdxl-tiny", Precision.FLOAT32, vae=vae)
    assert model.components["vae"].config.sample_size == 72


def test_stock_vae_of_sdxl_in_float16_is_warned_about():
    assert load("sdxl-tiny", Precision.FLOAT16).warnings == (
        "sdxl-tiny has no fp16-safe VAE: decoding runs in float32, which is slower",
    )


class TestBrokenFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        return copy_of("sd15-tiny", tmp_path)

    def test_cut_file(self, folder):
        weights = next((folder / "unet").glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1000])
        self._assert_unreadable(folder)

    def test_missing_file(self, folder):
        next((folder / "unet").glob("*.safetensors")).unlink()
        self._assert_unreadable(folder)

    def test_broken_config(self, folder):
        (folder / "unet" / "config.json").write_text("{")
        self._assert_unreadable(folder)

    def _assert_unreadable(self, folder: Path) -> None:
        with pytest.raises(WeightsUnreadable, match="sd15-tiny") as caught:
            load("sd15-tiny", Precision.FLOAT32, folder=folder)
        assert caught.value.refresh_worker

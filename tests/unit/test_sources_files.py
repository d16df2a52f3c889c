"""Which files of a repository are needed, and in which order."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.factories import EXTRAS_FILE
from support.weights_directories import CATALOG

from pixpod.extras import load_extras
from pixpod.weights.hub_repository import (
    VAE_FILES,
    choose_files,
    extra_files,
    in_boot_order,
    needed_files,
)


def listed(text):
    return text.split()


FLUX_DEV = listed("""
    LICENSE.md README.md ae.safetensors dev_grid.jpg flux1-dev.safetensors model_index.json
    scheduler/scheduler_config.json text_encoder/config.json text_encoder/model.safetensors
    text_encoder_2/config.json text_encoder_2/model-00001-of-00002.safetensors
    text_encoder_2/model-00002-of-00002.safetensors text_encoder_2/model.safetensors.index.json
    tokenizer/merges.txt tokenizer/vocab.json tokenizer_2/spiece.model tokenizer_2/tokenizer.json
    transformer/config.json transformer/diffusion_pytorch_model-00001-of-00003.safetensors
    transformer/diffusion_pytorch_model-00002-of-00003.safetensors
    transformer/diffusion_pytorch_model-00003-of-00003.safetensors
    transformer/diffusion_pytorch_model.safetensors.index.json
    vae/config.json vae/diffusion_pytorch_model.safetensors
""")

SDXL = listed("""
    01.png LICENSE.md README.md model_index.json scheduler/scheduler_config.json
    sd_xl_base_1.0.safetensors sd_xl_offset_example-lora_1.0.safetensors
    text_encoder/config.json text_encoder/flax_model.msgpack text_encoder/model.fp16.safetensors
    text_encoder/model.onnx text_encoder/model.safetensors text_encoder/openvino_model.bin
    text_encoder_2/config.json text_encoder_2/model.fp16.safetensors
    text_encoder_2/model.onnx_data text_encoder_2/model.safetensors tokenizer/vocab.json
    tokenizer_2/vocab.json unet/config.json unet/diffusion_pytorch_model.fp16.safetensors
    unet/diffusion_pytorch_model.safetensors unet/openvino_model.xml vae/config.json
    vae/diffusion_pytorch_model.fp16.safetensors vae/diffusion_pytorch_model.safetensors
    vae_1_0/config.json vae_1_0/diffusion_pytorch_model.safetensors vae_decoder/model.onnx
""")

SD15 = listed("""
    README.md model_index.json v1-5-pruned.safetensors safety_checker/model.safetensors
    feature_extractor/preprocessor_config.json scheduler/scheduler_config.json
    text_encoder/config.json text_encoder/model.safetensors tokenizer/merges.txt
    unet/config.json unet/diffusion_pytorch_model.bin
    unet/diffusion_pytorch_model.fp16.safetensors
    unet/diffusion_pytorch_model.non_ema.safetensors unet/diffusion_pytorch_model.safetensors
    vae/config.json vae/diffusion_pytorch_model.safetensors
""")

FLUX2_KLEIN = listed("""
    LICENSE.md README.md flux-2-klein-4b.safetensors model_index.json
    scheduler/scheduler_config.json text_encoder/config.json text_encoder/generation_config.json
    text_encoder/model-00001-of-00002.safetensors text_encoder/model-00002-of-00002.safetensors
    text_encoder/model.safetensors.index.json tokenizer/added_tokens.json
    tokenizer/chat_template.jinja tokenizer/merges.txt tokenizer/tokenizer.json
    tokenizer/tokenizer_config.json tokenizer/vocab.json transformer/config.json
    transformer/diffusion_pytorch_model.safetensors vae/config.json
    vae/diffusion_pytorch_model.safetensors
""")


def choose(name, listing):
    return choose_files(listing, needed_files(CATALOG[name]))


def weights(paths):
    return [path for path in paths if path.endswith(".safetensors")]


def test_flux_is_taken_whole_without_its_single_file_checkpoints():
    left_out = {"ae.safetensors", "flux1-dev.safetensors", "dev_grid.jpg"}
    assert set(choose("flux-dev", FLUX_DEV)) == set(FLUX_DEV) - left_out


def test_chat_template_of_a_language_model_is_taken():
    left_out = {"flux-2-klein-4b.safetensors"}
    assert set(choose("flux2-klein", FLUX2_KLEIN)) == set(FLUX2_KLEIN) - left_out


def test_sixteen_bit_weights_are_taken_where_there_are_two_kinds():
    assert weights(choose("sdxl", SDXL)) == [
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]


def test_variants_with_other_names_are_left_out_folder_by_folder():
    assert weights(choose("sd15", SD15)) == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert "feature_extractor/preprocessor_config.json" in choose("sd15", SD15)


@pytest.mark.parametrize("ending", [".bin", ".msgpack", ".onnx", ".onnx_data", ".png", ".xml"])
def test_other_formats_are_left_out(ending):
    taken = [*choose("sdxl", SDXL), *choose("sd15", SD15), *choose("flux-dev", FLUX_DEV)]
    assert not [path for path in taken if path.endswith(ending)]


def test_vae_that_another_repository_replaces_is_left_out():
    assert not [path for path in choose("sdxl", SDXL) if path.startswith("vae")]
    assert "vae/config.json" in choose("sd15", SD15)


def test_repository_of_a_vae_gives_one_file_of_weights():
    listing = listed("""config.json diffusion_pytorch_model.bin diffusion_pytorch_model.safetensors
        sdxl.vae.safetensors sdxl_vae.safetensors README.md images/a.png""")
    assert choose_files(listing, VAE_FILES) == (
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    )


def test_sharded_variant_is_taken_with_all_its_shards():
    listing = [f"unet/d.fp16-0000{n}-of-00002.safetensors" for n in (2, 1)]
    listing += ["unet/d-00001-of-00001.safetensors"]
    assert choose("sd15", listing) == tuple(reversed(listing[:2]))


IP_ADAPTER = listed("""
    README.md fig1.png models/image_encoder/config.json models/image_encoder/model.safetensors
    models/image_encoder/pytorch_model.bin models/ip-adapter-plus_sd15.bin
    models/ip-adapter-plus_sd15.safetensors models/ip-adapter-plus-face_sd15.safetensors
    models/ip-adapter_sd15.safetensors sdxl_models/image_encoder/model.safetensors
    sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors sdxl_models/ip-adapter_sdxl.safetensors
""")

REDUX = listed("""
    .gitattributes LICENSE.md README.md feature_extractor/preprocessor_config.json
    flux1-redux-dev.safetensors image_embedder/config.json
    image_embedder/diffusion_pytorch_model.safetensors image_encoder/config.json
    image_encoder/model.safetensors model_index.json redux.png
    text_encoder/model.safetensors
""")


@pytest.mark.parametrize(
    ("name", "changes", "listing", "chosen"),
    [
        (
            "tiny-vit",
            {"folder": "models/image_encoder"},
            IP_ADAPTER,
            "models/image_encoder/config.json models/image_encoder/model.safetensors",
        ),
        (
            "sd15-plus",
            {"folder": "models", "file": "ip-adapter-plus_sd15.safetensors"},
            IP_ADAPTER,
            "models/ip-adapter-plus_sd15.safetensors",
        ),
        (
            "sdxl-plus",
            {"folder": "sdxl_models", "file": "ip-adapter-plus_sdxl_vit-h.safetensors"},
            IP_ADAPTER,
            "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors",
        ),
        (
            "redux",
            {},
            REDUX,
            "image_embedder/config.json image_encoder/config.json"
            " image_embedder/diffusion_pytorch_model.safetensors image_encoder/model.safetensors",
        ),
    ],
)
def test_extra_for_image_prompts_is_taken_from_its_place(name, changes, listing, chosen):
    extra = replace(load_extras(EXTRAS_FILE)[name], **changes)
    found = choose_files(listing, extra_files(extra))
    beside = {"README.md", "LICENSE.md"}
    assert [path for path in found if path not in beside] == chosen.split()


@given(listing=st.permutations(FLUX_DEV))
def test_boot_order_is_small_files_then_encoders_denoiser_and_vae(listing):
    ordered = in_boot_order(listing)
    assert sorted(ordered) == sorted(listing)
    of_components = [path for path in weights(ordered) if "/" in path]
    assert not weights(ordered[: -len(weights(listing))])
    assert of_components == [
        "text_encoder/model.safetensors",
        *(f"text_encoder_2/model-0000{n}-of-00002.safetensors" for n in (1, 2)),
        *(f"transformer/diffusion_pytorch_model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)),
        "vae/diffusion_pytorch_model.safetensors",
    ]

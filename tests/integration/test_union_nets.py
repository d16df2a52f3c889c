"""Nets that take the types of their images, too, with random weights, beside stock diffusers."""

import hashlib
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetUnionModel, FluxControlNetModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from support import loading
from support.control_images import cases

from pixpod.engine.component_key import extra_key
from pixpod.engine.model import LoadedExtra
from pixpod.families import Precision
from pixpod.job import Conditions, ControlOptions, InputImage, RawImage
from pixpod.testing.runners import LocalRunner

CPU = torch.device("cpu")
SEEDS = (3, 4)
POSE, CANNY = 0, 3
NUM_MODES = 6
GIVEN = [case.drawn() for case in cases(2)]


def random_net(model):
    """A net whose zero-initialised layers are not zero, so that it has an effect."""
    torch.manual_seed(1)
    config = dict(model.denoiser.config)
    if model.spec.family.name == "sdxl":
        first = config["block_out_channels"][0]
        widths = {"num_trans_channel": first, "num_trans_head": 4, "num_proj_channel": first}
        net = ControlNetUnionModel.from_config(config, **widths)
        assert net.config.num_control_type == NUM_MODES
    else:
        config |= {"num_layers": 2, "num_single_layers": 0}
        net = FluxControlNetModel.from_config(config, num_mode=NUM_MODES)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["sdxl-tiny", "flux-tiny"])
def model(request):
    name = request.param
    model = loading.load(name, loading.shipped(name), Precision.FLOAT32, CPU)
    key = extra_key("union", Precision.FLOAT32)
    model.extras["union"] = LoadedExtra(module=random_net(model), key=key)
    return model


def as_input(pixels):
    height, width, _ = pixels.shape
    raw = RawImage(width=width, height=height, pixels=pixels.tobytes())
    return InputImage(raw=raw, digest=hashlib.sha256(pixels).hexdigest())


def request_with(model, modes, images=GIVEN, scale=0.7):
    plain = model.spec.default_request(
        prompt="a red circle on a blue background", num_inference_steps=4, seeds=SEEDS
    )
    controls = tuple(
        ControlOptions(net="union", scale=scale, start=0.0, end=1.0, union_mode=mode)
        for mode in modes
    )
    images = tuple(map(as_input, images[: len(modes)]))
    return replace(plain, controls=controls, conditions=Conditions(controls=images))


def generate(model, request):
    pixels = LocalRunner(model).generate(request).pixels
    return [np.frombuffer(each, np.uint8).reshape(64, 64, 3) for each in pixels]


def stock(model, request):
    """What diffusers generates, image by image."""
    family = model.spec.family
    is_flux = family.name == "flux"
    name = "FluxControlNetPipeline" if is_flux else "StableDiffusionXLControlNetUnionPipeline"
    pipe = getattr(diffusers, name)(
        **model.components,
        **model.tokenizers,
        controlnet=[model.extras["union"].module] * len(request.controls),
        scheduler=model.scheduler(request.sampling.scheduler),
        **family.pipeline_options,
    )
    pipe.set_progress_bar_config(disable=True)
    options = {"max_sequence_length": 48} if is_flux else {}
    return [
        np.array(
            pipe(
                prompt=request.prompts.prompt,
                control_image=[Image.fromarray(each) for each in GIVEN[: len(request.controls)]],
                control_mode=[control.union_mode for control in request.controls],
                controlnet_conditioning_scale=[control.scale for control in request.controls],
                num_inference_steps=request.sampling.num_inference_steps,
                guidance_scale=request.sampling.guidance_scale,
                width=64,
                height=64,
                generator=torch.Generator().manual_seed(seed),
                **options,
            ).images[0]
        )
        for seed in request.seeds
    ]


def difference(some, others):
    return np.abs(np.subtract(some, others, dtype=int)).max()


def test_images_are_those_of_stock_diffusers(model, monkeypatch):
    """Stock FLUX sees random latents of a control image, which cannot be compared."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, _: self.mode())
    for modes in ((CANNY,), (POSE, CANNY)):
        request = request_with(model, modes)
        assert difference(generate(model, request), stock(model, request)) <= 1, modes


def test_type_of_an_image_matters_and_scale_zero_does_nothing(model):
    canny = generate(model, request_with(model, (CANNY,)))
    assert difference(canny, generate(model, request_with(model, (POSE,)))) > 4
    plain = generate(model, request_with(model, ()))
    assert difference(canny, plain) > 4
    nothing = generate(model, request_with(model, (POSE, CANNY), scale=0.0))
    assert difference(nothing, plain) <= 1

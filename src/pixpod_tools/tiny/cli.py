"""The command line behind `scripts/train_tiny`: train, publish, evaluate.

A training that was interrupted resumes from its checkpoint in the folder of `--work`.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from pixpod_tools.bake.directory import list_again
from pixpod_tools.tiny import (
    controlnets,
    extras,
    flux,
    ip_adapter,
    kontext,
    loras,
    net_scores,
    pretrain,
    redux,
    sd35,
    unet,
    upscaler,
    vae,
)
from pixpod_tools.tiny.data import load_latents
from pixpod_tools.tiny.evaluate import evaluate
from pixpod_tools.tiny.layout import NARROW_VAE, SHARED, WIDE_VAE, publish, publish_vae
from pixpod_tools.tiny.narrow import find_narrowing, narrow_vae
from pixpod_tools.tiny.training import Course
from pixpod_tools.tiny.untrained import untrained_pipeline, untrained_vae

ROOT = Path(__file__).parents[3]
MODEL_CACHE = ROOT / "model_cache" / "tiny"
UNETS: dict[str, tuple[pretrain.Read, unet.Condition]] = {
    "sdxl": (unet.read_sdxl, unet.condition_sdxl),
    "sd15": (unet.read_sd15, unet.condition_sd15),
}


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    COMMANDS[options.command](options)
    if options.out == MODEL_CACHE:
        list_again(MODEL_CACHE.parent)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/train_tiny", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--out", type=Path, default=MODEL_CACHE, help="where checkpoints are put")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "train_tiny",
        help="where 32-bit weights are put",
    )
    parser.add_argument("--minutes", type=float, help="training time, instead of the usual")
    parser.add_argument("--init", type=Path, help="checkpoint to continue from")
    parser.add_argument("--learning-rate", type=float, help="peak, instead of the usual")
    parser.add_argument("--decoder-only", action="store_true", help="vae: keep the latents")
    parser.add_argument("--threads", type=int, default=1, help="two trainings fight over cores")
    parser.add_argument("--only", nargs="*", help="loras: names such as flux-frame")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def train_vae(options: argparse.Namespace) -> None:
    model = (
        AutoencoderKL.from_pretrained(options.init)
        if options.init
        else untrained_vae(MODEL_CACHE / SHARED / WIDE_VAE)
    )
    vae.train_vae(model, _course(vae.COURSE, options), decoder_only=options.decoder_only)
    model.save_pretrained(options.work / WIDE_VAE)
    publish_vae(options.work / WIDE_VAE, options.out)
    _checkpoint(options, "image").unlink()


def train_unet_vae(options: argparse.Namespace) -> None:
    """Needs the 32-bit weights of the other one."""
    wide = AutoencoderKL.from_pretrained(options.work / WIDE_VAE)
    model = narrow_vae(wide, find_narrowing(wide))
    vae.train_vae(model, _course(vae.COURSE, options), decoder_only=True)
    model.save_pretrained(options.work / NARROW_VAE)
    publish_vae(options.work / NARROW_VAE, options.out)
    _checkpoint(options, "image").unlink()


def train_flux(options: argparse.Namespace) -> None:
    pipeline = _prepare(flux.read, WIDE_VAE, options)
    flux.train_flux(pipeline, load_latents(pipeline.vae), _course(flux.COURSE, options))
    _save(pipeline, options)


def train_unet(options: argparse.Namespace) -> None:
    read, condition = UNETS[options.command]
    pipeline = _prepare(read, NARROW_VAE, options)
    course = _course(unet.COURSE, options)
    unet.train_unet(pipeline, condition, load_latents(pipeline.vae), course)
    _save(pipeline, options)


def train_sd35(options: argparse.Namespace) -> None:
    """The text encoders are those of flux-tiny and sdxl-tiny in the folder `--out`."""
    pipeline = sd35.untrained_sd35(options.out)
    sd35.train_sd35(pipeline, load_latents(pipeline.vae), _course(sd35.COURSE, options))
    _save(pipeline, options)


def train_net(options: argparse.Namespace) -> None:
    extras.train_net(options.command, options.out, _course(controlnets.COURSE, options))
    _checkpoint(options, "image").unlink()


def train_redux(options: argparse.Namespace) -> None:
    redux.train_redux(options.out, _course(redux.COURSE, options))
    _checkpoint(options, "image").unlink()


def train_upscaler(options: argparse.Namespace) -> None:
    upscaler.train_upscaler(options.out, _course(upscaler.COURSE, options))
    _checkpoint(options, "image").unlink()


def train_ip_adapter(options: argparse.Namespace) -> None:
    ip_adapter.train_ip_adapter(options.out, _course(ip_adapter.COURSE, options))
    _checkpoint(options, "image").unlink()


def train_kontext(options: argparse.Namespace) -> None:
    kontext.train_kontext(options.out, _course(kontext.COURSE, options), options.init)
    _checkpoint(options, "image").unlink()


def train_loras(options: argparse.Namespace) -> None:
    """Train the LoRAs of `--only`, else all. The models are those in the folder `--out`."""
    for lora in loras.LORAS:
        if options.only and lora.name not in options.only:
            continue
        checkpoint = options.work / f"{lora.name}.checkpoint"
        minutes = options.minutes or lora.minutes
        course = replace(loras.COURSE, seed=options.seed, minutes=minutes, checkpoint=checkpoint)
        loras.train_lora(lora, options.out, course)
        checkpoint.unlink()


def evaluate_nets(options: argparse.Namespace) -> None:
    net_scores.evaluate_nets(options.out)


def run_evaluation(options: argparse.Namespace) -> None:
    evaluate(options.out, ROOT / "docs" / "images" / "tiny-grid.png")


def train_all(options: argparse.Namespace) -> None:
    models = ("vae", "unet-vae", "flux", "sdxl", "sd15", "sd35")
    additions = ("loras", *extras.NETS, redux.NAME, ip_adapter.ADAPTER, kontext.NAME, upscaler.NAME)
    for command in (*models, *additions, "evaluate", "evaluate-nets"):
        COMMANDS[command](argparse.Namespace(**{**vars(options), "command": command}))


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "vae": train_vae,
    "unet-vae": train_unet_vae,
    "flux": train_flux,
    "sdxl": train_unet,
    "sd15": train_unet,
    "sd35": train_sd35,
    **dict.fromkeys(extras.NETS, train_net),
    redux.NAME: train_redux,
    upscaler.NAME: train_upscaler,
    ip_adapter.ADAPTER: train_ip_adapter,
    kontext.NAME: train_kontext,
    "loras": train_loras,
    "evaluate": run_evaluation,
    "evaluate-nets": evaluate_nets,
    "all": train_all,
}


def _prepare(read: pretrain.Read, vae_name: str, options: argparse.Namespace) -> DiffusionPipeline:
    """Load the weights of `--init`, or pre-train fresh text encoders."""
    autoencoder = (
        AutoencoderKL.from_pretrained(options.work / vae_name).eval().requires_grad_(False)
    )
    if options.init:
        return DiffusionPipeline.from_pretrained(options.init, vae=autoencoder, dtype=torch.float32)
    pipeline = untrained_pipeline(MODEL_CACHE / f"{options.command}-tiny", autoencoder)
    checkpoint = _checkpoint(options, "text")
    course = replace(pretrain.COURSE, seed=options.seed, checkpoint=checkpoint)
    pretrain.pretrain(pipeline, read, course)
    return pipeline


def _save(pipeline: DiffusionPipeline, options: argparse.Namespace) -> None:
    name = f"{options.command}-tiny"
    pipeline.save_pretrained(options.work / name)
    publish(options.work / name, options.out / name)
    for kind in ("text", "image"):
        _checkpoint(options, kind).unlink(missing_ok=True)


def _checkpoint(options: argparse.Namespace, kind: str) -> Path:
    work: Path = options.work
    return work / f"{options.command}-{kind}.checkpoint"


def _course(usual: Course, options: argparse.Namespace) -> Course:
    chosen = {"minutes": options.minutes, "learning_rate": options.learning_rate}
    return replace(
        usual,
        seed=options.seed,
        checkpoint=_checkpoint(options, "image"),
        **{k: v for k, v in chosen.items() if v},
    )


if __name__ == "__main__":
    main()

"""The command line behind `scripts/train_tiny`: train, publish, evaluate."""

import argparse
import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
from transformers import PreTrainedModel

from pixpod_tools.tiny import flux, pretrain, report, unet, vae
from pixpod_tools.tiny.data import LatentBucket, load_latents
from pixpod_tools.tiny.encoders import FluxText, TextStack
from pixpod_tools.tiny.evaluate import evaluate, show
from pixpod_tools.tiny.layout import publish, publish_vae
from pixpod_tools.tiny.suites import MODELS
from pixpod_tools.tiny.training import Course

ROOT = Path(__file__).parents[3]
MODEL_CACHE, DOCS = ROOT / "model_cache" / "tiny", ROOT / "docs"
FAMILIES: dict[str, Callable[[], unet.UnetFamily]] = {
    "sdxl": unet.SdxlFamily,
    "sd15": unet.Sd15Family,
}


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    COMMANDS[options.command](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/train_tiny", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--out", type=Path, default=MODEL_CACHE, help="where checkpoints are put")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "train_tiny",
        help="scratch: 32-bit weights and cached latents",
    )
    parser.add_argument("--minutes", type=float, help="training time, instead of the usual")
    parser.add_argument("--init", type=Path, help="checkpoint to continue from")
    parser.add_argument(
        "--model", choices=[model.name for model in MODELS], help="evaluate this one only"
    )
    parser.add_argument("--learning-rate", type=float, help="peak, instead of the usual")
    parser.add_argument("--decoder-only", action="store_true", help="vae: keep the latents")
    parser.add_argument("--threads", type=int, default=1, help="two trainings fight over cores")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def train_vae(options: argparse.Namespace) -> None:
    model = AutoencoderKL.from_pretrained(options.init) if options.init else vae.build_vae()
    course = _course(vae.COURSE, options)
    vae.train_vae(model, course, options.work / "vae", decoder_only=options.decoder_only)
    publish_vae(model, options.out)
    if not options.decoder_only:
        for stale in options.work.glob("latents-*.pt"):
            stale.unlink()


def train_flux(options: argparse.Namespace) -> None:
    text = FluxText()
    pipeline = flux.build_flux(_vae(options), text)
    save = _prepare(pipeline, text, "flux-tiny", options)
    flux.train_flux(pipeline, text, _latents(options), _course(flux.COURSE, options), save)


def train_unet(options: argparse.Namespace) -> None:
    family = FAMILIES[options.command]()
    pipeline = family.build(_vae(options))
    save = _prepare(pipeline, family.text, f"{options.command}-tiny", options)
    unet.train_unet(pipeline, family, _latents(options), _course(unet.COURSE, options), save)


def run_evaluation(options: argparse.Namespace) -> None:
    accuracy = DOCS / "benchmarks" / "tiny-accuracy.json"
    for model in MODELS:
        if options.model in (None, model.name):
            result = evaluate(model, options.out / model.name)
            known = {**report.read_json(accuracy), model.name: result}
            results = {each.name: known[each.name] for each in MODELS if each.name in known}
            report.write_json(results, accuracy)
            table = report.accuracy_table(result)
            report.write_between_marks(table, options.out / model.name / "README.md")
            report.write_between_marks(report.summary_table(results), options.out / "README.md")
    rows = {model.name: show(model, options.out / model.name) for model in MODELS}
    report.save_sheet(rows, DOCS / "images" / "tiny-grid.png")


def train_all(options: argparse.Namespace) -> None:
    for command in ("vae", "flux", "sdxl", "sd15", "evaluate"):
        COMMANDS[command](argparse.Namespace(**{**vars(options), "command": command}))


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "vae": train_vae,
    "flux": train_flux,
    "sdxl": train_unet,
    "sd15": train_unet,
    "evaluate": run_evaluation,
    "all": train_all,
}


def _prepare(
    pipeline: DiffusionPipeline, text: TextStack, name: str, options: argparse.Namespace
) -> Callable[[], None]:
    """Start from `--init` or from freshly pre-trained text encoders; returns how to save."""
    if options.init:
        _load_weights(pipeline, options.init)
    else:
        _load_words(text, options.work / f"{name}-words.pt", options.seed)

    def save() -> None:
        pipeline.save_pretrained(options.work / name)
        publish(pipeline, options.out / name)

    return save


def _load_words(text: TextStack, cache: Path, seed: int) -> None:
    """Pre-train the text encoders, or take them from the cache of an earlier run."""
    encoders = text.encoders()
    if not cache.exists():
        accuracy = pretrain.pretrain(text, replace(pretrain.COURSE, seed=seed))
        logging.info("text encoders answer %.1f %% of the questions", 100 * accuracy)
        torch.save(encoders.state_dict(), cache)
    encoders.load_state_dict(torch.load(cache, weights_only=True))


def _load_weights(pipeline: DiffusionPipeline, folder: Path) -> None:
    for name, component in pipeline.components.items():
        if isinstance(component, (ModelMixin, PreTrainedModel)) and name != "vae":
            loaded = type(component).from_pretrained(folder / name, dtype=torch.float32)
            component.load_state_dict(loaded.state_dict())


def _vae(options: argparse.Namespace) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(options.work / "vae").eval().requires_grad_(False)


def _latents(options: argparse.Namespace) -> list[LatentBucket]:
    return load_latents(_vae(options), options.work)


def _course(usual: Course, options: argparse.Namespace) -> Course:
    chosen = {"minutes": options.minutes, "learning_rate": options.learning_rate}
    return replace(usual, seed=options.seed, **{k: v for k, v in chosen.items() if v})


if __name__ == "__main__":
    main()

"""Converts single-file checkpoints in the layouts of their authors, by diffusers, offline.

Unlike the rest of baking, it holds a whole component in memory. Some families' files have the
denoiser and perhaps the VAE only; the text encoders come from the folder with the configs.
"""

import inspect
import shutil
from pathlib import Path

import diffusers
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from pixpod.catalog import ModelSpec
from pixpod.errors import InvalidSettings, ModelUnavailable, WeightsUnreadable
from pixpod.families import FAMILIES, FamilySpec
from pixpod.weights.layout import MODEL_INDEX

_PREFIX = "model.diffusion_model."
_VAE_PREFIXES = ("vae.", "first_stage_model.")


def check_family(spec: ModelSpec, file: Path) -> None:
    """Compare the names and shapes in a file's header with the family of the catalog's entry.

    Raises ModelUnavailable if it is another one, WeightsUnreadable for no safetensors file.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            shapes = {name: opened.get_slice(name).get_shape() for name in names}
    except (SafetensorError, OSError) as exc:
        raise WeightsUnreadable(f"{file}: {exc}") from exc
    headers = {family: family.header for family in FAMILIES.values() if family.header}
    headers |= {spec.family: spec.family.header} if spec.family.header else {}
    fitting = [family for family, header in headers.items() if header.fits(shapes)]
    if spec.family in fitting or not (fitting or spec.family.header):
        return
    got = " or ".join(family.title for family in fitting) or "a file of an unknown one"
    raise ModelUnavailable(
        f"{spec.name}: {file}: expected weights of the family {spec.family.title}, got {got}"
    )


def as_folder(spec: ModelSpec, file: Path, config: Path, dtype: torch.dtype, folder: Path) -> None:
    """Write the file's model as a folder of diffusers; missing parts are linked from `config`.

    Raises InvalidSettings if `config` is no such folder, ModelUnavailable for a VAE that diffusers
    does not convert, WeightsUnreadable if it cannot make sense of the file with these configs.
    """
    if not (config / MODEL_INDEX).is_file():
        raise InvalidSettings(f"--config {config}: expected a folder with {MODEL_INDEX}")
    try:
        if spec.family.has_denoiser_files:
            _convert_denoiser(spec.family, file, config, dtype, folder)
        else:
            _convert_pipeline(spec.family, file, config, dtype, folder)
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError, AttributeError) as exc:
        raise WeightsUnreadable(
            f"{file}: diffusers cannot convert it with the configs in {config}: {exc}"
        ) from exc


def _convert_pipeline(
    family: FamilySpec, file: Path, config: Path, dtype: torch.dtype, folder: Path
) -> None:
    pipeline_class = getattr(diffusers, family.default_pipeline)
    parameters = inspect.signature(pipeline_class.__init__).parameters
    without = {"safety_checker": None} if "safety_checker" in parameters else {}
    pipe = pipeline_class.from_single_file(
        str(file),
        config=str(config),
        local_files_only=True,
        dtype=dtype,
        **without,
        **family.pipeline_options,
    )
    pipe.save_pretrained(folder)


def _convert_denoiser(
    family: FamilySpec, file: Path, config: Path, dtype: torch.dtype, folder: Path
) -> None:
    """Convert a file with a denoiser and perhaps a VAE; all else is linked from `config`."""
    # diffusers knows the names of FLUX.2 without the prefix only
    tensors = {name.removeprefix(_PREFIX): each for name, each in load_file(file).items()}
    has_vae = any(name.startswith(_VAE_PREFIXES) for name in tensors)
    found = [family.denoiser, family.vae] if has_vae else [family.denoiser]
    classes = {name: family.component(name).class_name for name in found}
    if has_vae and classes[family.vae] not in SINGLE_FILE_LOADABLE_CLASSES:
        raise ModelUnavailable(
            f"{file}: expected the {family.denoiser} alone: there is a VAE too, and "
            f"diffusers converts no {classes[family.vae]} of a single file"
        )
    for name, class_name in classes.items():
        model = getattr(diffusers, class_name).from_single_file(
            dict(tensors), config=str(config), subfolder=name, local_files_only=True, dtype=dtype
        )
        model.save_pretrained(folder / name)
    for path in config.iterdir():
        if path.is_dir() and path.name not in classes:
            (folder / path.name).symlink_to(path.resolve(), target_is_directory=True)
        elif path.is_file():
            shutil.copyfile(path, folder / path.name)

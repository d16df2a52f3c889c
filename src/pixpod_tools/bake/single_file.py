"""Single-file checkpoints in the layouts of their authors, converted by diffusers, offline.

Holds a component in memory as a whole, unlike all else that bakes. FLUX's files have the
transformer and perhaps the VAE; its text encoders come from the folder with the configs.
"""

import shutil
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors import SafetensorError, safe_open

from pixpod.catalog import Family, ModelSpec
from pixpod.errors import InvalidSettings, WeightsUnreadable
from pixpod.weights.layout import MODEL_INDEX, PIPELINE_CLASS

_VAE_PREFIXES = ("vae.", "first_stage_model.")


def as_folder(spec: ModelSpec, file: Path, config: Path, dtype: torch.dtype, folder: Path) -> None:
    """Write the file's model as a folder of diffusers; what it lacks is linked from `config`.

    Raises InvalidSettings if `config` is no such folder, WeightsUnreadable if diffusers cannot
    make sense of the file with these configs.
    """
    if not (config / MODEL_INDEX).is_file():
        raise InvalidSettings(f"--config {config}: accepted is a folder with {MODEL_INDEX}")
    try:
        if spec.family is Family.FLUX:
            _convert_flux(file, config, dtype, folder)
        else:
            _convert_pipeline(spec.family, file, config, dtype, folder)
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError, AttributeError) as exc:
        raise WeightsUnreadable(
            f"{file}: diffusers cannot convert it with the configs in {config}: {exc}"
        ) from exc


def _convert_pipeline(
    family: Family, file: Path, config: Path, dtype: torch.dtype, folder: Path
) -> None:
    pipeline_class = getattr(diffusers, PIPELINE_CLASS[family])
    without = {"safety_checker": None} if family is Family.SD15 else {"add_watermarker": False}
    pipe = pipeline_class.from_single_file(
        str(file), config=str(config), local_files_only=True, dtype=dtype, **without
    )
    pipe.save_pretrained(folder)


def _convert_flux(file: Path, config: Path, dtype: torch.dtype, folder: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        names = opened.keys()
        has_vae = any(name.startswith(_VAE_PREFIXES) for name in names)
    found = {"transformer": FluxTransformer2DModel} | ({"vae": AutoencoderKL} if has_vae else {})
    for name, model_class in found.items():
        model = model_class.from_single_file(
            str(file), config=str(config), subfolder=name, local_files_only=True, dtype=dtype
        )
        model.save_pretrained(folder / name)
    for path in config.iterdir():
        if path.is_dir() and path.name not in found:
            (folder / path.name).symlink_to(path.resolve(), target_is_directory=True)
        elif path.is_file():
            shutil.copyfile(path, folder / path.name)

"""Loads a whole model: its components, tokenizers and scheduler config."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from pixpod.engine.component_key import ComponentKey, own_keys
from pixpod.engine.execution.pipelines import calls_of
from pixpod.engine.loading.components import (
    LoadJob,
    build_skeleton,
    load_component,
    needs_upcast,
)
from pixpod.engine.model import Component, LoadedModel, Tokenizer
from pixpod.engine.precision.attention import NATIVE, set_attention
from pixpod.errors import OutOfMemory, WeightsUnreadable
from pixpod.families import FamilySpec
from pixpod.job import ModelIdentity
from pixpod.weights.layout import MODEL_INDEX

Admit = Callable[[str, Callable[[], Component]], Component]
"""Makes room on the device for the component of a name, and loads it."""


def import_pipelines(families: Iterable[FamilySpec]) -> None:
    """Import the code of these families, which diffusers does when a class is first used."""
    for family in families:
        calls_of(family)
        for class_name in family.pipelines.values():
            getattr(diffusers, class_name)


def silence_libraries() -> None:
    """Keep diffusers and transformers quiet: their warnings quote prompts that they cut."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def load_model(
    job: LoadJob,
    *,
    attention: str = NATIVE,
    keys: Mapping[str, ComponentKey] | None = None,
    present: Mapping[str, Component] = MappingProxyType({}),
    admit: Admit = lambda name, load: load(),
) -> LoadedModel:
    """Build a model while its files are being read, and bind each component once it is there.

    `attention` is the denoiser's backend. `keys` identify its components, None if it shares
    none. `present` components are loaded already, for another model or variant. `admit` makes
    room for a component and loads it, or returns one that another thread has loaded meanwhile.

    Raises WeightsUnreadable if its files cannot be read, OutOfMemory if it does not fit.
    """
    spec, plan = job.spec, job.plan
    names = [name for name in spec.family.component_names if name not in present]
    try:
        with job.timeline.span("build", spec.name):
            skeletons = {name: build_skeleton(job, name) for name in names}
            index = json.loads((job.weights.folder / MODEL_INDEX).read_text(encoding="utf-8"))
            tokenizers = _load_tokenizers(job, index)
            scheduler_class = getattr(diffusers, index["scheduler"][1])
            scheduler_config = scheduler_class.load_config(job.weights.folder / "scheduler")
        components = dict(present)
        for name, skeleton in skeletons.items():
            components[name] = admit(name, partial(load_component, job, name, skeleton))
        cautions = _cautions(job, components[spec.family.vae])
        if spec.family.sets_attention_backend:
            denoiser = components[spec.family.denoiser]
            cautions += set_attention(denoiser, attention, job.device)
    except torch.OutOfMemoryError as exc:
        raise OutOfMemory(f"{spec.name} in {plan.label} does not fit on {job.device}") from exc
    except (OSError, ValueError, KeyError, SafetensorError) as exc:
        folder = job.weights.folder
        raise WeightsUnreadable(f"{spec.name}: the files in {folder} are broken") from exc
    identity = ModelIdentity(
        name=spec.name,
        revision=job.weights.revision,
        precision=plan.label,
        weights=job.weights.source,
    )
    return LoadedModel(
        spec=spec,
        identity=identity,
        device=job.device,
        components=components,
        keys=keys or own_keys(spec, plan.precision),
        tokenizers=tokenizers,
        scheduler_config=scheduler_config,
        pipeline_options={**_index_options(index), **spec.family.pipeline_options},
        cautions=cautions,
    )


def _load_tokenizers(job: LoadJob, index: Mapping[str, Any]) -> dict[str, Tokenizer]:
    """Load the tokenizers of the model's text encoders by their names. Any: JSON."""
    names = [name.replace("text_encoder", "tokenizer") for name in job.spec.family.text_encoders]
    return {
        name: getattr(transformers, index[name][1]).from_pretrained(
            job.weights.folder / name, local_files_only=True
        )
        for name in names
    }


def _index_options(index: Mapping[str, Any]) -> dict[str, object]:
    """Return the entries of a model index that are no components, as a constructor's arguments."""
    return {
        name: value
        for name, value in index.items()
        if not name.startswith("_") and not isinstance(value, list)
    }


def _cautions(job: LoadJob, vae: Component) -> tuple[str, ...]:
    """Return messages for callers about how this model runs."""
    if not needs_upcast(job.spec, vae, job.plan):
        return job.plan.warnings
    slow = f"{job.spec.name} has no fp16-safe VAE: decoding runs in float32, which is slower"
    return (*job.plan.warnings, slow)

"""Bakes one model into a weights directory: from its source, or from random numbers."""

import logging
from pathlib import Path

from pixpod.catalog import Catalog, ModelSpec
from pixpod.engine.loading.components import DTYPE
from pixpod.errors import InvalidSettings
from pixpod.families import Precision
from pixpod.weights.disk import check_space, disk_faults
from pixpod.weights.manifest import ManifestEntry
from pixpod_tools.bake.bars import byte_bar
from pixpod_tools.bake.convert import convert, plan_conversion
from pixpod_tools.bake.directory import add_model, is_baked
from pixpod_tools.bake.random_cache import find_architecture, plan_model, write_random_model
from pixpod_tools.bake.recipes import ModelRecipe
from pixpod_tools.bake.sources import Origin, SourceOptions, opened
from pixpod_tools.bake.versions import library_versions

log = logging.getLogger(__name__)


def bake(
    directory: Path,
    recipe: ModelRecipe,
    catalog: Catalog,
    options: SourceOptions,
    max_shard_bytes: int,
) -> None:
    """Put a model into the directory unless it is there already, complete and by the same recipe.

    Raises a WorkerError that says what to do. The next run resumes where this one stopped.
    """
    spec = _get_spec(recipe, catalog)
    dtype = DTYPE[recipe.plan.precision]
    with (
        disk_faults(directory, spec.name),
        opened(spec, options, dtype, directory) as origin,
    ):
        entry = _entry(spec, recipe, origin)
        if is_baked(directory, entry):
            log.info("already baked", extra={"model": spec.name})
            return
        conversion = plan_conversion(spec, recipe, origin.folder, origin.vae)
        check_space(directory, conversion.size_bytes, spec.name)

        def make(folder: Path) -> None:
            with byte_bar(f"{spec.name}: converting", conversion.size_bytes) as bar:
                convert(conversion, folder, max_shard_bytes, bar.update)

        add_model(directory, entry, make)


def bake_random(
    directory: Path,
    recipe: ModelRecipe,
    size_bytes: int | None,
    max_shard_bytes: int,
) -> None:
    """Bake a model of random weights; its revision in the manifest is `random`."""
    architecture = find_architecture(recipe.model, size_bytes)
    components = plan_model(architecture, recipe, size_bytes)
    total_bytes = sum(component.size_bytes for component in components)
    entry = ManifestEntry(
        name=recipe.model,
        path=recipe.model,
        revision="random",
        precision=recipe.plan.precision,
        recipe=f"random numbers; {recipe.describe(architecture.family)}",
        versions=library_versions(),
    )
    with disk_faults(directory, recipe.model):
        check_space(directory, total_bytes, recipe.model)

        def make(folder: Path) -> None:
            with byte_bar(f"{recipe.model}: writing", total_bytes) as bar:
                write_random_model(folder, architecture, components, max_shard_bytes, bar.update)

        add_model(directory, entry, make)


def _get_spec(recipe: ModelRecipe, catalog: Catalog) -> ModelSpec:
    if recipe.model not in catalog:
        raise InvalidSettings(f"model {recipe.model}: expected {', '.join(catalog)}")
    spec = catalog[recipe.model]
    if recipe.plan.precision is Precision.FLOAT8_DYNAMIC and spec.quantization is None:
        whose = spec.name if spec.keeps_16_bit else f"{spec.family.title} models"
        raise InvalidSettings(f"model {spec.name}: {whose} have no float8_dynamic form")
    return spec


def _entry(spec: ModelSpec, recipe: ModelRecipe, origin: Origin) -> ManifestEntry:
    text = recipe.describe(spec.family)
    if origin.vae is not None:
        text += f"; VAE of {spec.vae_repository or 'another folder'}"
    if origin.denoiser is not None:
        text += f"; denoiser of {origin.denoiser}"
    return ManifestEntry(
        name=spec.name,
        path=spec.name,
        revision=origin.revision,
        repository=origin.repository,
        precision=recipe.plan.precision,
        licence=spec.licence,
        recipe=text,
        versions=library_versions(),
    )

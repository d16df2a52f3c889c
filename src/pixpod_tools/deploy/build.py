"""Builds the endpoint that a configuration describes, with remarks for the user."""

import math
from collections.abc import Mapping
from pathlib import Path

from pixpod.catalog import Catalog, load_catalog
from pixpod.contract.stacks import load_presets
from pixpod.errors import InvalidSettings
from pixpod.extras import Extras, load_extras
from pixpod.families import GIB, Precision
from pixpod.settings import Settings
from pixpod.stacks import Presets
from pixpod_tools.deploy.configuration import Configuration, Mode
from pixpod_tools.deploy.endpoint import EndpointSpec
from pixpod_tools.deploy.errors import InvalidConfiguration
from pixpod_tools.deploy.fit import ServedModel, files_gb
from pixpod_tools.deploy.pools import Pool, choose_pools, load_pools, named_pools
from pixpod_tools.deploy.profiles import CPU_FLAVORS, served_models

SOFTWARE_GB = 12.0
"""Size of an image without weights, in 10^9 bytes: Python, torch and its CUDA libraries."""

SCRATCH_GB = 5.0
"""Disk for compiled artefacts, logs and images before their upload, in 10^9 bytes."""

_STEP_GB = 5

_OURS: Mapping[str, str] = {
    "PIXPOD_MODELS": "models",
    "PIXPOD_EXTRAS": "extras",
    "PIXPOD_STACKS": "stacks",
    "PIXPOD_PRECISION": "precision",
    "PIXPOD_ACCEPT_LICENCES": "accept_licences",
}
"""Variables of the container that follow from keys, which they are refused beside."""


def build_spec(wanted: Configuration) -> EndpointSpec:
    """Build the endpoint. Raises InvalidConfiguration for settings that cannot work."""
    models = served_models(wanted, *_load_catalog(wanted), _load_presets(wanted))
    _check_volume(wanted)
    if wanted.cpu is not None and wanted.gpu_pools is not None:
        raise InvalidConfiguration("cpu", wanted.cpu, "either cpu or gpu_pools")
    default_cpu = CPU_FLAVORS.get(wanted.profile) if wanted.gpu_pools is None else None
    cpu = wanted.cpu or default_cpu
    pools = () if cpu else _choose_pools(wanted, models)
    return EndpointSpec(
        configuration=wanted,
        env=_environment(wanted, models),
        pools=pools,
        cpu=cpu,
        container_disk_gb=wanted.container_disk_gb or disk_gb(wanted.mode, files_gb(models)),
        remarks=tuple(_remarks(wanted, models, pools)),
    )


def disk_gb(mode: Mode, weights_gb: float) -> int:
    """Return the disk to request, which has the image and the copy of a volume's models."""
    if mode is Mode.CACHED_MODEL:
        weights_gb = 0.0
    return math.ceil((SOFTWARE_GB + SCRATCH_GB + weights_gb) / _STEP_GB) * _STEP_GB


def _load_catalog(wanted: Configuration) -> tuple[Catalog, Extras]:
    """Return the models and extras that the worker knows, too."""
    if wanted.catalog is None:
        return load_catalog(), load_extras()
    if "PIXPOD_CATALOG" not in wanted.env:
        raise InvalidConfiguration(
            "env.PIXPOD_CATALOG", None, "the place of the catalog's file in the container"
        )
    file = Path(wanted.catalog)
    try:
        return load_catalog(file), load_extras(file)
    except InvalidSettings as error:
        raise InvalidConfiguration("catalog", wanted.catalog, f"a catalog: {error}") from error


def _load_presets(wanted: Configuration) -> Presets:
    """Return the presets that the worker knows, too."""
    if wanted.presets is None:
        return load_presets()
    if "PIXPOD_PRESETS" not in wanted.env:
        raise InvalidConfiguration(
            "env.PIXPOD_PRESETS", None, "the place of the presets' file in the container"
        )
    try:
        return load_presets(Path(wanted.presets))
    except InvalidSettings as error:
        accepted = f"what a worker takes: {error}"
        raise InvalidConfiguration("presets", wanted.presets, accepted) from error


def _check_volume(wanted: Configuration) -> None:
    if wanted.mode is Mode.VOLUME and wanted.network_volume_id is None:
        raise InvalidConfiguration("network_volume_id", None, "an id, in mode volume")
    if wanted.mode is not Mode.VOLUME and wanted.network_volume_id is not None:
        accepted = f"none in mode {wanted.mode}: both are mounted at /runpod-volume"
        raise InvalidConfiguration("network_volume_id", wanted.network_volume_id, accepted)


def _choose_pools(wanted: Configuration, models: tuple[ServedModel, ...]) -> tuple[Pool, ...]:
    pools = load_pools()
    if wanted.gpu_pools is not None:
        return named_pools(pools, wanted.gpu_pools, models)
    return choose_pools(pools, models)


def _environment(wanted: Configuration, models: tuple[ServedModel, ...]) -> Mapping[str, str]:
    """Variables of the container, checked as a worker would check them."""
    for name, key in _OURS.items():
        if name in wanted.env or name in wanted.secrets:
            raise InvalidConfiguration(f"env.{name}", None, f"the key {key} in its place")
    own = {
        "PIXPOD_MODELS": ",".join(model.spec.name for model in models),
        "PIXPOD_EXTRAS": ",".join(wanted.extras or ()),
        "PIXPOD_STACKS": ",".join(wanted.stacks),
        "PIXPOD_PRECISION": ",".join("=".join(pair) for pair in wanted.precision.items()),
        "PIXPOD_ACCEPT_LICENCES": ",".join(wanted.accept_licences),
    }
    plain = {name: value for name, value in own.items() if value} | wanted.env
    _check_settings(plain, wanted.secrets)
    references = {
        name: f"{{{{ RUNPOD_SECRET_{secret} }}}}" for name, secret in wanted.secrets.items()
    }
    return dict(sorted((plain | references).items()))


def _check_settings(plain: Mapping[str, str], secrets: Mapping[str, str]) -> None:
    """Refuse settings that a worker would refuse, before they cost a cold start."""
    stand_ins = dict.fromkeys(secrets, "known-to-the-platform")
    try:
        Settings.from_env({**plain, **stand_ins, "RUNPOD_WEBHOOK_GET_JOB": "on the platform"})
    except InvalidSettings as error:
        if any(name in str(error) for name in secrets):
            return  # the real value may be good
        raise InvalidConfiguration("env", None, f"settings that a worker takes: {error}") from error


def _remarks(
    wanted: Configuration, models: tuple[ServedModel, ...], pools: tuple[Pool, ...]
) -> list[str]:
    remarks = [_fit_text(pool, models) for pool in pools]
    if wanted.mode is Mode.CACHED_MODEL:
        remarks.append(
            "REST v2 has no field for the cached model: after applying, set it in the console "
            f"(Manage, Edit Endpoint, Model) to {models[0].spec.repository}"
        )
        if any(model.requested is Precision.FLOAT8_DYNAMIC for model in models):
            remarks.append(
                "float8_dynamic from a 16-bit repository: each cold start reads twice the bytes "
                "and quantizes; bake the model for the fastest start"
            )
    if wanted.mode is Mode.VOLUME:
        remarks.append(
            "workers run only in the volume's data center, and copy its weights once per host"
        )
    if "@" not in wanted.image and wanted.image.rpartition("/")[2].partition(":")[2] in (
        "",
        "latest",
    ):
        remarks.append(
            f"image {wanted.image}: this tag is moved by each build, and a moved tag is no change "
            "here; give each build a tag of its own"
        )
    return remarks


def _fit_text(pool: Pool, models: tuple[ServedModel, ...]) -> str:
    """Say how a worker's plan places the models on the pool's smallest GPU."""
    worst = pool.worst_fit(models)
    assert worst.plan is not None, "pools that do not serve the models were refused"
    plan = worst.plan
    offloaded = ", ".join(str(key) for key in plan.offloaded)
    placed = f"offloaded between stages: {offloaded}" if offloaded else "all resident"
    stacks = (
        f"; {stack.name} needs {plan.needed_bytes(need, stack.stages) / GIB:.1f} GiB"
        for need in plan.needs
        for stack in need.declared_stacks
    )
    return f"{pool.id} ({worst.gpu.name}): {placed}{''.join(stacks)}"

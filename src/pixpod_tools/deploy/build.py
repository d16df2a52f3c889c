"""From what the user asks for to the endpoint that we want, and what to tell about it."""

from collections.abc import Mapping
from dataclasses import dataclass

from pixpod.catalog import load_catalog
from pixpod.errors import InvalidSettings
from pixpod.families import Precision
from pixpod.settings import Settings
from pixpod_tools.deploy.configuration import Configuration, Scaler
from pixpod_tools.deploy.endpoint import CpuCompute, EndpointSpec, GpuCompute
from pixpod_tools.deploy.errors import InvalidConfiguration
from pixpod_tools.deploy.footprints import Footprints, Mode, Need, ServedModel
from pixpod_tools.deploy.pools import choose_pools, load_pools, named_pools
from pixpod_tools.deploy.profiles import Profile, find_profile, served_models

DEFAULT_IDLE_TIMEOUT_S = 5
"""The console's default; the API's own is 10."""

_OURS = ("PIXPOD_MODELS", "PIXPOD_PRECISION", "PIXPOD_ACCEPT_LICENCES")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The endpoint, and remarks of one line each that the user reads before it is applied."""

    spec: EndpointSpec
    remarks: tuple[str, ...]


def build_wanted(asked: Configuration) -> Wanted:
    """Raises InvalidConfiguration for what cannot work, before anything is sent."""
    profile = find_profile(asked)
    models = served_models(asked, profile, load_catalog())
    _check_volume(asked)
    footprints = Footprints()
    needs = _known_needs(asked, footprints, models)
    uses_queue_delay = asked.scaler is Scaler.QUEUE_DELAY
    idle_timeout_s = asked.idle_timeout_s or DEFAULT_IDLE_TIMEOUT_S
    spec = EndpointSpec(
        name=asked.name,
        image=asked.image,
        env=_environment(asked, models),
        compute=_compute(asked, profile, needs),
        min_workers=asked.min_workers,
        max_workers=asked.max_workers,
        idle_timeout_s=idle_timeout_s if uses_queue_delay else None,
        scaler=asked.scaler,
        scaler_value=asked.scaler_value,
        execution_timeout_s=asked.execution_timeout_s,
        flashboot=asked.flashboot,
        container_disk_gb=asked.container_disk_gb
        or footprints.disk_gb(asked.mode, needs.files_gb if needs else 0),
        network_volume_ids=(asked.network_volume_id,) if asked.network_volume_id else (),
        data_centers=asked.data_centers,
        registry_auth_id=asked.registry_auth_id,
    )
    return Wanted(spec=spec, remarks=tuple(_remarks(asked, models, needs)))


def secret_reference(name: str) -> str:
    """How the platform is told to put a secret's value into a variable."""
    return f"{{{{ RUNPOD_SECRET_{name} }}}}"


def _check_volume(asked: Configuration) -> None:
    if asked.mode is Mode.VOLUME and asked.network_volume_id is None:
        raise InvalidConfiguration("network_volume_id", None, "an id, in mode volume")
    if asked.mode is not Mode.VOLUME and asked.network_volume_id is not None:
        accepted = f"none in mode {asked.mode}: both are mounted at /runpod-volume"
        raise InvalidConfiguration("network_volume_id", asked.network_volume_id, accepted)


def _known_needs(
    asked: Configuration, footprints: Footprints, models: tuple[ServedModel, ...]
) -> Need | None:
    """None if there are no figures and the user has chosen all that would follow from them."""
    try:
        return footprints.need(models)
    except InvalidConfiguration:
        if asked.gpu_pools and asked.container_disk_gb:
            return None
        raise


def _compute(
    asked: Configuration, profile: Profile | None, need: Need | None
) -> GpuCompute | CpuCompute:
    flavor = asked.cpu or (profile.cpu if profile and asked.gpu_pools is None else None)
    if flavor is not None:
        if asked.gpu_pools is not None:
            raise InvalidConfiguration("cpu", asked.cpu, "either cpu or gpu_pools")
        return CpuCompute(flavor=flavor, vcpus=asked.vcpus)
    pools = load_pools()
    return GpuCompute(
        pools=named_pools(pools, asked.gpu_pools, need)
        if asked.gpu_pools is not None
        else choose_pools(pools, _certain(need)),
        excluded_types=asked.exclude_gpus,
        min_cuda=asked.min_cuda,
    )


def _certain(need: Need | None) -> Need:
    assert need is not None, "needs are unknown only where the user names the pools"
    return need


def _environment(asked: Configuration, models: tuple[ServedModel, ...]) -> Mapping[str, str]:
    """Variables of the container, checked as a worker would check them."""
    for name in _OURS:
        if name in asked.env or name in asked.secrets:
            accepted = "the keys models, precision and accept_licences in its place"
            raise InvalidConfiguration(f"env.{name}", None, accepted)
    own = {
        "PIXPOD_MODELS": ",".join(model.spec.name for model in models),
        "PIXPOD_PRECISION": ",".join("=".join(pair) for pair in asked.precision.items()),
        "PIXPOD_ACCEPT_LICENCES": ",".join(asked.accept_licences),
    }
    plain = {name: value for name, value in own.items() if value} | asked.env
    _check_settings(plain, asked.secrets)
    references = {name: secret_reference(secret) for name, secret in asked.secrets.items()}
    return dict(sorted((plain | references).items()))


def _check_settings(plain: Mapping[str, str], secrets: Mapping[str, str]) -> None:
    """A setting that a worker would refuse is refused here, before it costs a cold start."""
    stand_ins = dict.fromkeys(secrets, "known-to-the-platform")
    try:
        Settings.from_env({**plain, **stand_ins, "RUNPOD_WEBHOOK_GET_JOB": "on the platform"})
    except InvalidSettings as error:
        if any(name in str(error) for name in secrets):
            return  # the real value may be good
        raise InvalidConfiguration("env", None, f"settings that a worker takes: {error}") from error


def _remarks(asked: Configuration, models: tuple[ServedModel, ...], need: Need | None) -> list[str]:
    remarks = []
    if need is not None:
        remarks.append(f"{', '.join(model.spec.name for model in models)}: about {need}")
    if asked.mode is Mode.CACHED_MODEL:
        remarks.append(
            "REST v2 has no field for the cached model: after applying, set it in the console "
            f"(Manage, Edit Endpoint, Model) to {models[0].spec.repository}"
        )
        if any(model.precision is Precision.FLOAT8_DYNAMIC for model in models):
            remarks.append(
                "float8_dynamic from a 16-bit repository: each cold start reads twice the bytes "
                "and quantises; bake the model for the fastest start"
            )
    if asked.mode is Mode.VOLUME:
        remarks.append(
            "workers run only in the volume's data center, and copy its weights once per host"
        )
    if "@" not in asked.image and asked.image.rpartition("/")[2].partition(":")[2] in (
        "",
        "latest",
    ):
        remarks.append(
            f"image {asked.image}: this tag is moved by each build, and a moved tag is no change "
            "here; give each build a tag of its own"
        )
    return remarks

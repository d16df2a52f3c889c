"""The environment that the platform gives to a worker. It starts nothing and reads no `os.environ`.

Later variables replace earlier ones: inherited ones without any `RUNPOD_*`, defaults, those of the
endpoint's `env`, and those of the protocol, which cannot be replaced.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus, urlsplit

from runpod_emulator.behaviour import Behaviour
from runpod_emulator.errors import EmulatorError
from runpod_emulator.settings import EndpointSettings

PLATFORM_PREFIX = "RUNPOD_"
"""Prefix of the variables that workers never inherit, the emulator's own included."""

TAKEN_FROM_HOME = {"XDG_CACHE_HOME": ".cache", "PYTHONUSERBASE": ".local"}
"""Folders that a new HOME must not hide: downloaded models (Hugging Face, torch), user packages.

A container has neither; here they avoid a download and a second installation.
"""


class ProtectedVariable(EmulatorError):
    """An endpoint's `env` has a variable that connects a worker to the emulator."""


def worker_environ(
    endpoint: EndpointSettings,
    behaviour: Behaviour,
    *,
    base_url: str,
    worker_id: str,
    token: str,
    home: Path,
    inherited: Mapping[str, str],
) -> dict[str, str]:
    """Return a worker's environment. `base_url` is without `/v2`. Raises `ProtectedVariable`.

    HOME is `home`, without a user's `~/.runpod/config.toml`: the SDK would prefer its key to
    `token`. An endpoint that sets HOME itself keeps it unchanged, also for its caches.
    """
    protocol = _protocol(endpoint, behaviour, base_url, worker_id, token)
    _refuse_protected(endpoint, protocol)
    _refuse_key_of_home(endpoint)
    environ = {
        name: value for name, value in inherited.items() if not name.startswith(PLATFORM_PREFIX)
    }
    if "HOME" not in endpoint.env:
        environ = {**_kept_from_home(inherited), **environ, "HOME": str(home.absolute())}
    environ = {**environ, **_defaults(endpoint, worker_id), **endpoint.env, **protocol}
    return environ | _no_proxy(environ, base_url)


def _protocol(
    endpoint: EndpointSettings, behaviour: Behaviour, base_url: str, worker_id: str, token: str
) -> dict[str, str]:
    """Return the variables by which the SDK finds the platform; it fills in `$ID` and the like."""
    root = f"{base_url.rstrip('/')}/v2/{quote(endpoint.id, safe='')}"
    # the SDK appends `&...` blindly: each URL needs a parameter
    query = f"?gpu={quote_plus(endpoint.gpu)}"
    return {
        "RUNPOD_WEBHOOK_GET_JOB": f"{root}/job-take/$ID{query}",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{root}/job-done/$RUNPOD_POD_ID/$ID{query}",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{root}/job-stream/$RUNPOD_POD_ID/$ID{query}",
        "RUNPOD_WEBHOOK_PING": f"{root}/ping/$RUNPOD_POD_ID{query}",
        # the SDK's ping process breaks on less than a second
        "RUNPOD_PING_INTERVAL": str(max(1000, round(behaviour.ping_interval_s * 1000))),
        "RUNPOD_AI_API_KEY": token,
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_ENDPOINT_ID": endpoint.id,
    }


def _defaults(endpoint: EndpointSettings, worker_id: str) -> dict[str, str]:
    return {
        # they look for 8.8.8.8 and for the GPU that `gpu` names
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        "RUNPOD_SKIP_GPU_CHECK": "true",
        # or `rp_download` refuses files that are served on this machine
        "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true",
        # the SDK's own default, DEBUG, prints what handlers return; documentation says INFO
        "RUNPOD_LOG_LEVEL": "INFO",
        "RUNPOD_POD_HOSTNAME": worker_id,
        "RUNPOD_GPU_COUNT": str(endpoint.gpu_count),
        "RUNPOD_GPU_TYPE_ID": endpoint.gpu,
    }


def _kept_from_home(inherited: Mapping[str, str]) -> dict[str, str]:
    home = inherited.get("HOME")
    if not home:
        return {}
    return {name: str(Path(home) / folder) for name, folder in TAKEN_FROM_HOME.items()}


def _no_proxy(environ: Mapping[str, str], base_url: str) -> dict[str, str]:
    """Exclude the emulator from an inherited proxy, which cannot reach it, for the SDK's pings."""
    excepted = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    names = ",".join(filter(None, (excepted, urlsplit(base_url).hostname)))
    return {"NO_PROXY": names, "no_proxy": names}


def _refuse_protected(endpoint: EndpointSettings, protocol: Mapping[str, str]) -> None:
    names = ", ".join(sorted(protocol.keys() & endpoint.env.keys()))
    if names:
        raise ProtectedVariable(
            f"env of endpoint {endpoint.id!r}: expected none of the variables that the "
            f"emulator itself sets, got {names}"
        )


def _refuse_key_of_home(endpoint: EndpointSettings) -> None:
    """Refuse a HOME whose SDK configuration has a key (profile `default`)."""
    home = endpoint.env.get("HOME")
    if not home:
        return
    config = Path(home) / ".runpod" / "config.toml"
    try:
        profiles = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if "default" in profiles:
        raise ProtectedVariable(
            f"env of endpoint {endpoint.id!r}: HOME = {home!r}: the SDK would use the API key "
            f"of {config} instead of the worker's; expected a folder without that file"
        )

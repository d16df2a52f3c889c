"""`--reload`: notices changes of a project's Python files and restarts its workers."""

import asyncio
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from runpod_emulator.api.gateway import Endpoint
from runpod_emulator.settings import EndpointSettings

logger = logging.getLogger(__name__)

POLL_S = 0.5
NOT_SOURCES = ("__pycache__", "node_modules")
ENVIRONMENT_MARK = "pyvenv.cfg"

Sources = Mapping[str, tuple[int, int]]
"""Files by path, with the time of the last change and the size."""


async def reload_on_change(endpoints: Collection[Endpoint]) -> None:
    """Restart an endpoint's workers when its sources change, until cancelled."""
    before = {endpoint.settings.id: await _sources(endpoint) for endpoint in endpoints}
    while True:
        await asyncio.sleep(POLL_S)
        for endpoint in endpoints:
            now = await _sources(endpoint)
            changed = changed_files(before[endpoint.settings.id], now)
            if changed:
                before[endpoint.settings.id] = now
                logger.info("workers restart", extra={"changed": ", ".join(changed)})
                endpoint.fleet.restart(f"changed: {changed[0]}")


async def _sources(endpoint: Endpoint) -> Sources:
    return await asyncio.to_thread(sources_in, folders_of(endpoint.settings))


def folders_of(endpoint: EndpointSettings) -> tuple[Path, ...]:
    """Return the folder of the project, and that of a handler elsewhere."""
    files = (Path(part) for part in endpoint.command if part.endswith(".py"))
    folders = [endpoint.workdir, *(path.parent for path in files if path.is_absolute())]
    return tuple(
        folder for folder in folders if folder == folders[0] or folders[0] not in folder.parents
    )


def sources_in(folders: Iterable[Path]) -> Sources:
    """Return all Python files except those of virtual environments and hidden folders."""
    found: dict[str, tuple[int, int]] = {}
    for root in folders:
        for folder, subfolders, names in os.walk(root):
            if ENVIRONMENT_MARK in names:
                subfolders.clear()
                continue
            subfolders[:] = [
                name for name in subfolders if name[0] != "." and name not in NOT_SOURCES
            ]
            for name in names:
                if name.endswith(".py"):
                    found.update(_stamp(Path(folder, name)))
    return found


def changed_files(before: Sources, now: Sources) -> list[str]:
    """Return the files that are new, removed or different."""
    return sorted({path for path, _ in before.items() ^ now.items()})


def _stamp(path: Path) -> Sources:
    try:
        stat = path.stat()
    except OSError:  # removed since
        return {}
    return {str(path): (stat.st_mtime_ns, stat.st_size)}

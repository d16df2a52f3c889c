"""Bakes one extra, such as a ControlNet, into a weights directory."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from pixpod.engine.loading.components import DTYPE
from pixpod.errors import InvalidSettings
from pixpod.extras import ExtraSpec
from pixpod.families import Precision
from pixpod.weights.disk import check_space, disk_faults
from pixpod.weights.hub_repository import extra_files
from pixpod.weights.layout import Weights, check_extra_layout
from pixpod.weights.manifest import MANIFEST, ManifestEntry, read_manifest
from pixpod_tools.bake.bars import byte_bar
from pixpod_tools.bake.directory import add_model, is_baked
from pixpod_tools.bake.extra_parts import plan_parts
from pixpod_tools.bake.sources import (
    DOWNLOADS,
    HUB,
    Origin,
    SourceOptions,
    check_licence,
    fetch_to,
    newest,
    revision_of,
)
from pixpod_tools.bake.versions import library_versions

log = logging.getLogger(__name__)


def bake_extra(
    directory: Path,
    extra: ExtraSpec,
    precision: Precision,
    options: SourceOptions,
    max_shard_bytes: int,
) -> None:
    """Put an extra into the directory unless it is there already, complete and in this precision.

    Raises a WorkerError that says what to do. The next run resumes where this one stopped.
    """
    with disk_faults(directory, extra.name), _opened(extra, options, directory) as origin:
        check_extra_layout(
            extra, Weights(folder=origin.folder, revision=origin.revision, source=HUB)
        )
        entry = _entry(extra, precision, origin)
        if is_baked(directory, entry):
            log.info("already baked", extra={"extra": extra.name})
            return
        with ExitStack() as files:
            parts = plan_parts(extra, origin.folder, DTYPE[precision], files)
            size_bytes = sum(part.size_bytes for part in parts)
            check_space(directory, size_bytes, extra.name)

            def make(folder: Path) -> None:
                with byte_bar(f"{extra.name}: converting", size_bytes) as bar:
                    for part in parts:
                        part.write(folder, max_shard_bytes, bar.update)

            add_model(directory, entry, make)


@contextmanager
def _opened(extra: ExtraSpec, options: SourceOptions, directory: Path) -> Iterator[Origin]:
    """Yield a folder of the extra's layout, which exists during the block."""
    check_licence(extra, options.accepted_licences)
    location = options.location or (HUB if extra.repository else str(options.own_models))
    if location != HUB:
        yield _local(extra, options, Path(location))
        return
    downloads = directory / DOWNLOADS / extra.name
    if extra.repository is None:
        raise InvalidSettings(
            f"{extra.name} has no repository in the catalog: give it there, or a folder with --from"
        )
    revision = options.revision or extra.revision or newest(extra.repository, options)
    fetch_to(downloads, extra.repository, revision, extra_files(extra), options)
    yield Origin(folder=downloads / extra.folder, revision=revision, repository=extra.repository)
    shutil.rmtree(downloads)
    if not any(downloads.parent.iterdir()):
        downloads.parent.rmdir()


def _local(extra: ExtraSpec, options: SourceOptions, path: Path) -> Origin:
    """Return an origin: a folder of the extra's layout, or a weights directory with this extra."""
    if (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        if extra.name not in manifest:
            held = ", ".join(manifest) or "nothing"
            raise InvalidSettings(f"--from {path}: holds {held}, not {extra.name}")
        entry = manifest[extra.name]
        return Origin(
            folder=path / entry.path,
            revision=options.revision or entry.revision,
            repository=entry.repository,
        )
    wanted = extra.file or str(PurePosixPath(extra.components[0].name, "config.json"))
    if not (path / wanted).is_file():
        raise InvalidSettings(
            f"--from {path}: expected {HUB}, or a folder with {wanted} or {MANIFEST}"
        )
    return Origin(
        folder=path,
        revision=options.revision or revision_of(path),
        repository=extra.repository,
    )


def _entry(extra: ExtraSpec, precision: Precision, origin: Origin) -> ManifestEntry:
    return ManifestEntry(
        name=extra.name,
        path=extra.name,
        revision=origin.revision,
        repository=origin.repository,
        precision=precision,
        licence=extra.licence,
        recipe=f"all in {precision}",
        versions=library_versions(),
        is_extra=True,
    )

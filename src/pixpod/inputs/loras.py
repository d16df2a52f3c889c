"""Gets the LoRA files that a job names: those of callers, and those of the deployment."""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import gettempdir

from pixpod.errors import AdapterUnusable, WeightsRefused
from pixpod.inputs.intake import MAX_WEIGHTS_BYTES, Intake, read_all
from pixpod.inputs.lora_cache import LoraCache, LoraUse
from pixpod.inputs.lora_names import check_names
from pixpod.inputs.named import NamedLora
from pixpod.inputs.refusals import Refused, to_error
from pixpod.inputs.targets import Target
from pixpod.inputs.weights_files import read_weights_header
from pixpod.job import LoraFile

SUFFIX = ".safetensors"
MAX_NAME_CHARACTERS = 60

_Stamp = tuple[int, int]
"""Size and time of the last change of a file."""


class DeployedLoras:
    """The LoRAs in a directory of the deployment, by the names of their files without suffix."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._hashes: dict[str, tuple[_Stamp, str]] = {}

    @property
    def names(self) -> frozenset[str]:
        if self._directory is None or not self._directory.is_dir():
            return frozenset()
        return frozenset(path.stem for path in self._directory.glob(f"*{SUFFIX}"))

    def get(self, name: str) -> tuple[Path, str]:
        """Return path and SHA-256 of a file whose header is good. Raises AdapterUnusable."""
        assert self._directory is not None, "there are names in a directory only"
        path = self._directory / f"{name}{SUFFIX}"
        try:
            stat = path.stat()
            stamp = (stat.st_size, stat.st_mtime_ns)
            known = self._hashes.get(name)
            if known is None or known[0] != stamp:
                data = path.read_bytes()
                header = read_weights_header(data, MAX_WEIGHTS_BYTES)
                if header.size_bytes != len(data):
                    accepted = "a safetensors file as long as its header says"
                    raise Refused(WeightsRefused, accepted, value=f"{len(data)} bytes")
                check_names(header.shapes)
                known = self._hashes[name] = (stamp, hashlib.sha256(data).hexdigest())
        except OSError as exc:
            raise AdapterUnusable(f"LoRA {name}: {exc.strerror}") from exc
        except Refused as refused:
            raise AdapterUnusable(
                f"LoRA {name}: expected {refused.accepted}, got {refused.value}"
            ) from refused
        return path, known[1]


class Loras:
    """Gets LoRAs of both kinds. Without a cache, files of callers are kept while they are used."""

    def __init__(
        self, cache: LoraCache | None = None, deployed: DeployedLoras | None = None
    ) -> None:
        self.cache = cache or LoraCache(Path(gettempdir()) / "pixpod-loras", 0)
        self._deployed = deployed or DeployedLoras(None)

    async def get(
        self, named: Sequence[NamedLora], intake: Intake, use: LoraUse
    ) -> tuple[LoraFile, ...]:
        """Return the files in the order of their hashes; they are here as long as `use` lasts.

        Raises one error for all that is refused, or AdapterUnusable.
        """
        reads = {f"{each.path}.source": partial(self._get, each, intake, use) for each in named}
        files = list((await read_all(reads)).values())
        refusals: dict[str, Refused] = {}
        seen: set[str] = set()
        for file in files:
            if file.sha256 in seen:
                twice = Refused(WeightsRefused, "each LoRA once", value="the same file again")
                refusals[f"{file.field}.source"] = twice
            seen.add(file.sha256)
        if refusals:
            raise to_error(refusals)
        return tuple(sorted(files, key=lambda file: file.sha256))

    async def _get(self, named: NamedLora, intake: Intake, use: LoraUse) -> LoraFile:
        if isinstance(named.source, Target):
            found = await self.cache.get(named.source, named.sha256, intake, use)
            path, sha256, is_cached = found.path, found.sha256, found.is_cached
            name = _name_of(named.source)
        else:
            name = named.source
            path, sha256 = await asyncio.to_thread(self._deployed.get, name)
            is_cached = True
            if named.sha256 not in (None, sha256):
                accepted = "the file whose hash is given"
                raise Refused(WeightsRefused, accepted, value=f"one of {sha256}")
        return LoraFile(
            field=named.path,
            name=name,
            sha256=sha256,
            path=path,
            scale=named.scale,
            is_cached=is_cached,
            is_deployed=not isinstance(named.source, Target),
        )


def _name_of(target: Target) -> str:
    """Return the name of a URL's file, without what may be a signature."""
    path = target.url.partition("?")[0].partition("#")[0]
    last = path.rpartition("/")[2].removesuffix(SUFFIX)
    return re.sub(r"[^A-Za-z0-9._-]", "_", last)[:MAX_NAME_CHARACTERS] or "lora"

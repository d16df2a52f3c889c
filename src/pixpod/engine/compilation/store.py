"""A store of compiled regions on disk: finds those that fit this worker and says why others do not.

    <compiled_dir>/
        nvidia-h100-80gb-hbm3-1f0c52d9a4b7/     one folder for each `CompileKey`
            index.json                          its packages, with checksums
            FluxTransformerBlock-5d2e0f6b1c3a4978.pt2

A package is code and as trusted as the image that contains it: the checksum detects damage, not
manipulation. Packages in untrusted directories are not used.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from pixpod.weights.disk import disk_faults, sha256_of, write_durably

INDEX = "index.json"
FORMAT = 2

Constant = bool | int | float | str | None


class UnusablePackage(Exception):
    """A package cannot be used; the message says why, for the log and the reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileKey:
    """The environment that a package was compiled for; it runs in no other.

    `device_name` is the GPU's as the driver reports it, or the processor's; `capability` is the
    compute capability, or the processor's vector instructions.
    """

    device_name: str
    capability: str
    versions: Mapping[str, str]

    @property
    def folder(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        name = re.sub(r"[^a-z0-9]+", "-", self.device_name.lower()).strip("-")
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def differences(self, other: "CompileKey") -> tuple[str, ...]:
        """Describe each difference, e.g. `torch 2.12.0 there, 2.13.0 here`; `other` is here."""
        there, here = _facts(self), _facts(other)
        return tuple(
            f"{name} {there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One pytree leaf of a region's arguments. A tensor has a `shape`, with None for each size that
    may vary; any other leaf has none and must equal `constant`.
    """

    shape: tuple[int | None, ...] | None = None
    dtype: str | None = None
    example: tuple[int, ...] = ()
    constant: Constant = None

    @property
    def growth(self) -> tuple[int, int]:
        """Number of sizes that vary, and of elements in the example."""
        return (self.shape or ()).count(None), math.prod(self.example)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """The form of a region's call: the structures of its arguments and result, serialised by torch,
    and the leaves of the arguments. The `example` shapes of all leaves fit each other. The leaf at
    `growing` may have up to `max_elements`.
    """

    arguments: str
    result: str
    leaves: tuple[Leaf, ...]
    max_elements: int

    @property
    def growing(self) -> int:
        """Index of the leaf that grows with the image: the one with most varying sizes, and the
        largest of those.
        """
        return max(range(len(self.leaves)), key=lambda place: self.leaves[place].growth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A compiled kind of region, in the file at `path`."""

    kind: Annotated[str, Field(pattern=r"^\w+-[0-9a-f]{16}$")]
    form: CallForm
    path: Path
    size_bytes: int
    sha256: str


_PACKAGES = TypeAdapter(tuple[Package, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageIndex:
    """The packages in one folder of a store, by kind. `fault` says why none of them can be used."""

    folder: Path
    compile_key: CompileKey | None
    packages: Mapping[str, Package]
    fault: str | None = None


class CompiledStore:
    """The packages below a directory, which need not exist.

    Files in `untrusted` directories, or with links into them, are not used.
    """

    def __init__(self, directory: Path, *, untrusted: tuple[Path, ...] = ()) -> None:
        self._directory = directory
        self._untrusted = untrusted

    def indexes(self) -> Iterator[PackageIndex]:
        """Yield the index of each folder, including those that cannot be used."""
        if self._directory.is_dir():
            for folder in sorted(path.parent for path in self._directory.glob(f"*/{INDEX}")):
                yield _read_index(folder)

    def find(self, compile_key: CompileKey, kind: str) -> Package | None:
        """Return the package of this kind for this key, or None if there is no package of the kind.

        Raises UnusablePackage if it is damaged or untrusted, and if the kind was built for other
        keys only.
        """
        self._check_trust(self._directory / compile_key.folder / INDEX)
        index = _read_index(self._directory / compile_key.folder)
        if index.fault:
            raise UnusablePackage(f"{index.folder.name}: {index.fault}")
        package = index.packages.get(kind)
        if package is None:
            self._refuse_foreign(compile_key, kind)
            return None
        self._check_trust(package.path)
        check_package(package)
        return package

    def put(self, compile_key: CompileKey, kind: str, form: CallForm, built: Path) -> Package:
        """Move a file that was built on this disk into the store.

        Not for several processes at once. Raises the errors of `disk_faults`.
        """
        folder = self._directory / compile_key.folder
        with disk_faults(self._directory, "a compiled package"):
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / f"{kind}.pt2"
            package = Package(
                kind=kind,
                form=form,
                path=target,
                size_bytes=built.stat().st_size,
                sha256=sha256_of(built),
            )
            index = _read_index(folder)
            kept = {} if index.fault else dict(index.packages)
            kept.pop(kind, None)
            # never an index that names another file's checksum
            _write_index(folder, compile_key, kept)
            built.replace(target)
            _write_index(folder, compile_key, {**kept, kind: package})
        return package

    def _check_trust(self, path: Path) -> None:
        real = path.resolve()
        if any(real.is_relative_to(untrusted.resolve()) for untrusted in self._untrusted):
            raise UnusablePackage(
                f"{path.name}: expected a file that is not on a network volume, "
                "or PIXPOD_TRUST_VOLUME_CODE=true"
            )

    def _refuse_foreign(self, compile_key: CompileKey, kind: str) -> None:
        """Raise UnusablePackage with the differences to the nearest key of the same kind."""
        others = [
            index.compile_key.differences(compile_key)
            for index in self.indexes()
            if index.compile_key and kind in index.packages
        ]
        if others:
            fewest = min(len(differences) for differences in others)
            nearest = next(each for each in others if len(each) == fewest)
            raise UnusablePackage("; ".join(nearest))


def check_package(package: Package) -> None:
    """Raise UnusablePackage unless the file is as it was built."""
    try:
        is_good = (
            package.path.stat().st_size == package.size_bytes
            and sha256_of(package.path) == package.sha256
        )
    except OSError as exc:
        raise UnusablePackage(f"{package.path.name}: {exc.strerror}") from exc
    if not is_good:
        raise UnusablePackage(f"{package.path.name}: its checksum is wrong")


def _facts(compile_key: CompileKey) -> dict[str, str]:
    return {
        "device": compile_key.device_name,
        "capability": compile_key.capability,
        **compile_key.versions,
    }


def _read_index(folder: Path) -> PackageIndex:
    """Return an empty index if the folder does not exist."""
    nothing = PackageIndex(folder=folder, compile_key=None, packages={})
    try:
        document = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            fault = f"format {document['format']!r}: expected {FORMAT}; build again"
            return replace(nothing, fault=fault)
        compile_key = CompileKey(**document["compile_key"])
        packages = _PACKAGES.validate_python(
            [{**entry, "path": folder / f"{entry['kind']}.pt2"} for entry in document["packages"]]
        )
    except FileNotFoundError:
        return nothing
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        return replace(nothing, fault=f"{INDEX} cannot be read ({type(exc).__name__})")
    index = replace(nothing, compile_key=compile_key)
    if compile_key.folder != folder.name:
        fault = "the folder was renamed; its name must be that of its compile key"
        return replace(index, fault=fault)
    return replace(index, packages={each.kind: each for each in packages})


def _write_index(folder: Path, compile_key: CompileKey, packages: Mapping[str, Package]) -> None:
    document = {
        "format": FORMAT,
        "compile_key": asdict(compile_key),
        "packages": [
            {**asdict(package), "path": package.path.name} for package in packages.values()
        ],
    }
    write_durably(folder / INDEX, json.dumps(document, indent=1) + "\n")

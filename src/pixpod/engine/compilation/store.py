"""Compiled regions on a disk: which fit this worker, and why others do not.

    <compiled_dir>/
        nvidia-h100-80gb-hbm3-1f0c52d9a4b7/     one folder for each `Stamp`
            index.json                          what is in it, with checksums
            FluxTransformerBlock-5d2e0f6b1c3a4978.pt2

A package is code, and is trusted as the image is in which it was baked; the checksum finds
damage, not malice. Standard library only.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pixpod.weights.disk import disk_faults, sha256_of, write_durably

INDEX = "index.json"
FORMAT = 1

Constant = bool | int | float | str | None


class UnusablePackage(Exception):
    """A package is not used; the text says why, for the log and the reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What a package depends on beside the region itself: another value is another package.

    `card` is its name as the driver tells it, or the processor's; `capability` is CUDA's, or the
    processor's vector instructions.
    """

    card: str
    capability: str
    versions: Mapping[str, str]

    @property
    def folder(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        name = re.sub(r"[^a-z0-9]+", "-", self.card.lower()).strip("-")
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def differences(self, other: "Stamp") -> tuple[str, ...]:
        """What is not the same, e.g. `torch 2.12.0 there, 2.13.0 here`; `other` is here."""
        there, here = _facts(self), _facts(other)
        return tuple(
            f"{name} {there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One leaf of a region's call. `shape` has None where any size may come, and is itself None
    for what is no tensor, which must equal `constant`.
    """

    shape: tuple[int | None, ...] | None = None
    dtype: str | None = None
    example: tuple[int, ...] = ()
    constant: Constant = None

    @property
    def growth(self) -> tuple[int, int]:
        """How many of its sizes vary, and how many elements its example has."""
        return (self.shape or ()).count(None), math.prod(self.example)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """How a region is called: torch's serialised structures of its arguments and its result, and
    the leaves of the arguments. The `example` shapes of all leaves belong together. The `growing`
    leaf may have `max_elements`.
    """

    arguments: str
    result: str
    leaves: tuple[Leaf, ...]
    max_elements: int

    @property
    def growing(self) -> int:
        """The place of the leaf with which a call grows: most of its sizes vary, or it is larger
        than those of which as many do.
        """
        return max(range(len(self.leaves)), key=lambda place: self.leaves[place].growth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One compiled kind of region. `path` is where its file is."""

    kind: str
    form: CallForm
    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """One folder of a store. `packages` is by kind; `fault` says why nothing of it can be used."""

    folder: Path
    stamp: Stamp | None
    packages: Mapping[str, Package]
    fault: str | None = None


class CompiledStore:
    """The packages below a directory, which need not be there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def shelves(self) -> Iterator[Shelf]:
        """All folders, those that cannot be used too."""
        if self._directory.is_dir():
            for folder in sorted(path.parent for path in self._directory.glob(f"*/{INDEX}")):
                yield _read_shelf(folder)

    def find(self, stamp: Stamp, kind: str) -> Package | None:
        """The package of this kind that was built for this stamp; None if there is none at all.

        Raises UnusablePackage for one that is damaged, and if packages of the kind are there for
        other stamps only.
        """
        shelf = _read_shelf(self._directory / stamp.folder)
        if shelf.fault:
            raise UnusablePackage(f"{shelf.folder.name}: {shelf.fault}")
        package = shelf.packages.get(kind)
        if package is None:
            self._refuse_foreign(stamp, kind)
            return None
        check_package(package)
        return package

    def put(self, stamp: Stamp, kind: str, form: CallForm, built: Path) -> Package:
        """Move a file that was built here, on the same disk, into its place.

        One process at a time. Raises the errors of `disk_faults`.
        """
        folder = self._directory / stamp.folder
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
            shelf = _read_shelf(folder)
            kept = {} if shelf.fault else dict(shelf.packages)
            kept.pop(kind, None)
            _write_index(folder, stamp, kept)  # never an index that names another file's checksum
            built.replace(target)
            _write_index(folder, stamp, {**kept, kind: package})
        return package

    def _refuse_foreign(self, stamp: Stamp, kind: str) -> None:
        """Raises UnusablePackage for the nearest stamp under which the kind is there."""
        others = [
            shelf.stamp.differences(stamp)
            for shelf in self.shelves()
            if shelf.stamp and kind in shelf.packages
        ]
        if others:
            fewest = min(len(differences) for differences in others)
            nearest = next(each for each in others if len(each) == fewest)
            raise UnusablePackage("; ".join(nearest))


def check_package(package: Package) -> None:
    """Raises UnusablePackage unless the file is what was built."""
    try:
        is_good = (
            package.path.stat().st_size == package.size_bytes
            and sha256_of(package.path) == package.sha256
        )
    except OSError as exc:
        raise UnusablePackage(f"{package.path.name}: {exc.strerror}") from exc
    if not is_good:
        raise UnusablePackage(f"{package.path.name}: its checksum is wrong")


def _facts(stamp: Stamp) -> dict[str, str]:
    return {"card": stamp.card, "capability": stamp.capability, **stamp.versions}


def _read_shelf(folder: Path) -> Shelf:
    """An empty one if the folder is not there."""
    try:
        document = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            fault = f"format {document['format']!r}: accepted is {FORMAT}; build again"
            return Shelf(folder=folder, stamp=None, packages={}, fault=fault)
        stamp = Stamp(**document["stamp"])
        packages = [_parse_package(folder, entry) for entry in document["packages"]]
    except FileNotFoundError:
        return Shelf(folder=folder, stamp=None, packages={})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        fault = f"{INDEX} cannot be read ({type(exc).__name__})"
        return Shelf(folder=folder, stamp=None, packages={}, fault=fault)
    if stamp.folder != folder.name:
        fault = "the folder was renamed: its name tells what it was built for"
        return Shelf(folder=folder, stamp=stamp, packages={}, fault=fault)
    return Shelf(folder=folder, stamp=stamp, packages={each.kind: each for each in packages})


def _parse_package(folder: Path, entry: dict[str, object]) -> Package:
    """Raises ValueError, KeyError or TypeError for anything that `_write_index` did not write."""
    match entry:
        case {
            "kind": str(kind),
            "size_bytes": int(size_bytes),
            "sha256": str(sha256),
            "arguments": str(arguments),
            "result": str(result),
            "leaves": list(leaves),
            "max_elements": int(max_elements),
        } if re.fullmatch(r"\w+-[0-9a-f]{16}", kind):
            form = CallForm(
                arguments=arguments,
                result=result,
                leaves=tuple(map(_parse_leaf, leaves)),
                max_elements=max_elements,
            )
            path = folder / f"{kind}.pt2"
            return Package(kind=kind, form=form, path=path, size_bytes=size_bytes, sha256=sha256)
    raise ValueError("package")


def _parse_leaf(entry: dict[str, object]) -> Leaf:
    match entry:
        case {"constant": bool() | int() | float() | str() | None as constant}:
            return Leaf(constant=constant)
        case {"shape": list(shape), "dtype": str(dtype), "example": list(example)}:
            return Leaf(shape=tuple(shape), dtype=dtype, example=tuple(example))
    raise ValueError("leaf")


def _write_index(folder: Path, stamp: Stamp, packages: Mapping[str, Package]) -> None:
    document = {
        "format": FORMAT,
        "stamp": asdict(stamp),
        "packages": [_render_package(package) for package in packages.values()],
    }
    write_durably(folder / INDEX, json.dumps(document, indent=1) + "\n")


def _render_package(package: Package) -> dict[str, object]:
    return {
        "kind": package.kind,
        "size_bytes": package.size_bytes,
        "sha256": package.sha256,
        "arguments": package.form.arguments,
        "result": package.form.result,
        "max_elements": package.form.max_elements,
        "leaves": [
            {"constant": leaf.constant}
            if leaf.shape is None
            else {"shape": leaf.shape, "dtype": leaf.dtype, "example": leaf.example}
            for leaf in package.form.leaves
        ],
    }

"""What a store holds, and what of it would be used here."""

from collections.abc import Iterator
from pathlib import Path

from pixpod.engine.compilation.store import (
    CompiledStore,
    Shelf,
    Stamp,
    UnusablePackage,
    check_package,
)


def list_store(directory: Path, here: Stamp) -> Iterator[str]:
    """Lines of text."""
    yield f"here: {here.folder}"
    shelves = list(CompiledStore(directory).shelves())
    if not shelves:
        yield f"{directory} holds no packages"
    for shelf in shelves:
        yield f"{shelf.folder.name}: {_verdict(shelf, here)}"
        for package in shelf.packages.values():
            try:
                check_package(package)
                state = "whole"
            except UnusablePackage as exc:
                state = f"damaged: {exc}"
            yield f"  {package.size_bytes / 1e6:8.1f} MB  {package.kind}  {state}"


def _verdict(shelf: Shelf, here: Stamp) -> str:
    if shelf.fault or shelf.stamp is None:
        return f"not used: {shelf.fault}"
    differences = shelf.stamp.differences(here)
    return f"not used here: {'; '.join(differences)}" if differences else "used here"

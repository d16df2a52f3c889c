"""Lists the packages of a store, and those that would be used on this machine."""

from collections.abc import Iterator
from pathlib import Path

from pixpod.engine.compilation.store import (
    CompiledStore,
    CompileKey,
    PackageIndex,
    UnusablePackage,
    check_package,
)


def list_store(directory: Path, here: CompileKey) -> Iterator[str]:
    """Yield lines of text about the packages of a store."""
    yield f"here: {here.folder}"
    indexes = list(CompiledStore(directory).indexes())
    if not indexes:
        yield f"{directory} holds no packages"
    for index in indexes:
        yield f"{index.folder.name}: {_verdict(index, here)}"
        for package in index.packages.values():
            try:
                check_package(package)
                state = "whole"
            except UnusablePackage as exc:
                state = f"damaged: {exc}"
            yield f"  {package.size_bytes / 1e6:8.1f} MB  {package.kind}  {state}"


def _verdict(index: PackageIndex, here: CompileKey) -> str:
    if index.fault or index.compile_key is None:
        return f"not used: {index.fault}"
    differences = index.compile_key.differences(here)
    return f"not used here: {'; '.join(differences)}" if differences else "used here"

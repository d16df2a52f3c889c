"""Adds the Debian packages and the models to a CycloneDX list of Python packages.

Runs while the image is built: python sbom.py SBOM.json WEIGHTS_DIR VERSION < `dpkg-query` lines.
Standard library only.
"""

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote


def main(file: Path, weights_dir: Path, version: str) -> None:
    sbom = json.loads(file.read_text(encoding="utf-8"))
    packages = debian_packages(sys.stdin.read())
    models = baked_models(weights_dir)
    file.write_text(json.dumps(completed(sbom, [*packages, *models], version)), encoding="utf-8")


def completed(
    sbom: dict[str, Any], components: list[dict[str, Any]], version: str
) -> dict[str, Any]:
    """Return the same document with more components, about this image."""
    about = {"type": "container", "bom-ref": "pixpod", "name": "pixpod", "version": version}
    return {
        **sbom,
        "metadata": {**sbom.get("metadata", {}), "component": about},
        "components": [*sbom.get("components", []), *components],
    }


def debian_packages(listed: str) -> Iterator[dict[str, Any]]:
    """Yield a component for each line `name<TAB>version<TAB>architecture`."""
    for line in listed.splitlines():
        name, version, architecture = line.split("\t")
        yield {
            "type": "library",
            "bom-ref": f"deb/{name}:{architecture}",
            "name": name,
            "version": version,
            "purl": f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}",
        }


def baked_models(weights_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield a component for each model and extra of the manifest, if there is one."""
    manifest = weights_dir / "manifest.toml"
    if not manifest.is_file():
        return
    listed = tomllib.loads(manifest.read_text(encoding="utf-8"))
    for name, entry in {**listed.get("models", {}), **listed.get("extras", {})}.items():
        model = {
            "type": "machine-learning-model",
            "bom-ref": f"model/{name}",
            "name": name,
            "version": entry["revision"],
        }
        if "licence" in entry:
            model["licenses"] = [{"license": {"name": entry["licence"]}}]
        if "repository" in entry:
            model["purl"] = f"pkg:huggingface/{entry['repository']}@{entry['revision']}"
        yield model


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

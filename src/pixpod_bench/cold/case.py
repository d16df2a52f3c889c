"""One model of a weights directory on a device, as it is booted and loaded."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pixpod.catalog import Catalog, ModelSpec, load_catalog
from pixpod.weights.layout import Weights, files_to_read
from pixpod.weights.sources import BakedSource
from pixpod_bench.random_weights import bake

CPU_CATALOG = Path(__file__).with_name("cpu_catalog.toml")
"""Catalog with entries for full-size models on a CPU, where the built-in ones are not served."""

TINY = {"flux": "flux-tiny", "sdxl": "sdxl-tiny"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model to boot and load. `tiny` is a weights directory of the family's tiny model, loaded
    once before the clock starts, so that nothing is imported afterwards.
    """

    title: str
    directory: Path
    model: str
    device: str
    tiny: Path

    @classmethod
    def bake(cls, name: str, cache_dir: Path, device: str) -> "Case":
        """Make a case of `flux-dev`, or of `flux-dev:4` with fewer blocks, about 4 GB."""
        model, _, size = name.partition(":")
        tiny = TINY[load_catalog()[model].family.name]
        bake(cache_dir / "tiny", tiny)
        folder = cache_dir / ("tiny" if model == tiny else name.replace(":", "-"))
        bake(folder, model, int(size) if size else None)
        title = f"{model}, {size} GB" if size else model
        return cls(
            title=title, directory=folder, model=model, device=device, tiny=cache_dir / "tiny"
        )

    @property
    def spec(self) -> ModelSpec:
        return _catalog_for(self.device)[self.model]

    @property
    def pipeline(self) -> str:
        """Name of diffusers' class."""
        return self.spec.family.default_pipeline

    def weights(self) -> Weights:
        """The model's weights. Raises FileNotFoundError for a directory without the model."""
        found = BakedSource(self.directory).find(self.spec)
        if found is None:
            raise FileNotFoundError(f"{self.directory} holds no {self.model}")
        return found

    def paths(self) -> tuple[Path, ...]:
        """Return the files with weights, in the order of a boot."""
        return tuple(files_to_read(self.spec, self.weights()))

    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths())

    def rehearsal(self) -> "Case":
        return replace(self, directory=self.tiny, model=TINY[self.spec.family.name])

    def environ(self) -> dict[str, str]:
        """Return the variables of a worker that serves the model as it is stored, and eagerly.

        The loaders that it is compared with neither convert nor compile.
        """
        environ = {
            "PIXPOD_WEIGHTS_DIR": str(self.directory),
            "PIXPOD_MODELS": self.model,
            "PIXPOD_ACCEPT_LICENCES": self.spec.licence,
            "PIXPOD_DEVICE": self.device,
            "PIXPOD_COMPILE": "false",
            "PIXPOD_PRELOAD": "true",
            "PIXPOD_WARMUP_SIZES": "none",
        }
        if precision := self.weights().precision:
            environ["PIXPOD_PRECISION"] = precision
        if self.device == "cpu":
            environ["PIXPOD_CATALOG"] = str(CPU_CATALOG)
        return environ

    def as_json(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, str]) -> "Case":
        folders = {name: Path(document[name]) for name in ("directory", "tiny")}
        return cls(**{**document, **folders})  # type: ignore[arg-type] # names are the fields'


def _catalog_for(device: str) -> Catalog:
    return load_catalog(CPU_CATALOG if device == "cpu" else None)

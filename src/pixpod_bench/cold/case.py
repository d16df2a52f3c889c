"""What is loaded: one model of a weights directory, and what its catalog entry is on a device."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pixpod.catalog import Catalog, Family, load_catalog
from pixpod.weights.layout import Weights, files_to_read
from pixpod.weights.sources import BakedSource

CPU_CATALOG = Path(__file__).with_name("cpu_catalog.toml")
"""The full-size models are not served on a CPU; to load them there they need other entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`title` is what the tables call it; `tiny` a weights directory of one small model of the
    same family, loaded once before the clock starts, so that nothing is imported afterwards.
    """

    title: str
    directory: Path
    model: str
    device: str
    tiny: Path

    def weights(self) -> Weights:
        """Raises WorkerError for a directory that does not hold the model."""
        found = BakedSource(self.directory).find(catalog_for(self.device)[self.model])
        if found is None:
            raise FileNotFoundError(f"{self.directory} holds no {self.model}")
        return found

    def paths(self) -> tuple[Path, ...]:
        """The files with weights, in the order of a boot."""
        return tuple(files_to_read(catalog_for(self.device)[self.model], self.weights()))

    def rehearsal(self) -> "Case":
        family = catalog_for(self.device)[self.model].family
        return replace(self, directory=self.tiny, model=TINY[family])

    def as_json(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, str]) -> "Case":
        return cls(
            title=document["title"],
            directory=Path(document["directory"]),
            model=document["model"],
            device=document["device"],
            tiny=Path(document["tiny"]),
        )


TINY: Mapping[Family, str] = {Family.FLUX: "flux-tiny", Family.SDXL: "sdxl-tiny"}


def catalog_for(device: str) -> Catalog:
    return load_catalog(CPU_CATALOG if device == "cpu" else None)

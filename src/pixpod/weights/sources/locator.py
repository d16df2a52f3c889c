"""Searches one source after the other for a model's weights."""

import logging
from collections.abc import Sequence

from pixpod.catalog import ModelSpec
from pixpod.errors import ModelUnavailable, WorkerError
from pixpod.extras import ServedSpec
from pixpod.families import Precision
from pixpod.weights.layout import Weights
from pixpod.weights.sources.base import Source

log = logging.getLogger(__name__)


class WeightsLocator:
    """The sources of a deployment in order; the first one that has a model is used.

    It is an error if that source cannot provide the model: no later source is tried instead.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)

    @property
    def names(self) -> tuple[str, ...]:
        """The models that are served by default: those of the image, else those of the volume.

        Raises InvalidSettings for a damaged manifest.
        """
        return next((names for each in self._sources if (names := each.names)), ())

    @property
    def extra_names(self) -> tuple[str, ...]:
        """The extras that are offered by default, like `names`."""
        return next((names for each in self._sources if (names := each.extra_names)), ())

    def find(self, spec: ServedSpec) -> Weights | None:
        """Return weights of the first source that has them on a local disk; see `Source.find`."""
        return next((found for each in self._sources if (found := each.find(spec))), None)

    def stored_precision(self, spec: ModelSpec) -> Precision | None:
        """Return the stored format of the denoiser on a local disk; None for 16 bits or wider, and
        if it is not known yet. Errors are ignored: `find` and `fetch` raise them.
        """
        try:
            weights = self.find(spec)
        except WorkerError:
            return None
        return weights.precision if weights else None

    def fetch(self, spec: ServedSpec) -> Weights:
        """Return the weights of the first source that has the model; see `Source.fetch`.

        Raises ModelUnavailable, with the reason of each source, if none has it.
        """
        for source in self._sources:
            if weights := source.fetch(spec):
                _report(spec, weights)
                return weights
        said = "; ".join(f"{each.name}: {each.why_not(spec)}" for each in self._sources)
        raise ModelUnavailable(
            f"{spec.name} has no weights in this deployment: bake it into the image or onto the "
            f"volume, or serve other models (PIXPOD_MODELS). {said}"
        )


def _report(spec: ServedSpec, weights: Weights) -> None:
    found = {"model": spec.name, "source": weights.source, "revision": weights.revision}
    if spec.revision and weights.revision != spec.revision:
        pinned = {"pinned_revision": spec.revision}
        log.warning("weights are not of the pinned revision", extra=found | pinned)
    else:
        log.info("weights found", extra=found)

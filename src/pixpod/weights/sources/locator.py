"""Asks one source after the other for a model's weights."""

import logging
from collections.abc import Sequence

from pixpod.catalog import ModelSpec
from pixpod.errors import ModelUnavailable, WorkerError
from pixpod.families import Precision
from pixpod.weights.layout import Weights
from pixpod.weights.sources.base import Source

log = logging.getLogger(__name__)


class WeightsLocator:
    """The sources of a deployment in order; the first that has a model gives it.

    What a source has, but cannot give, is an error: nothing else is put in its place.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)

    @property
    def names(self) -> tuple[str, ...]:
        """What is served if nobody says: what the image holds, else what the volume holds.

        Raises InvalidSettings for a damaged manifest.
        """
        return next((names for each in self._sources if (names := each.names)), ())

    def find(self, spec: ModelSpec) -> Weights | None:
        """As of a source; the first that has the weights on a local disk already."""
        return next((found for each in self._sources if (found := each.find(spec))), None)

    def stored_precision(self, spec: ModelSpec) -> Precision | None:
        """What the denoiser is stored in on a local disk; None for 16 bits or wider, and where
        that is not known yet. What is wrong there, `find` and `fetch` say.
        """
        try:
            weights = self.find(spec)
        except WorkerError:
            return None
        return weights.precision if weights else None

    def fetch(self, spec: ModelSpec) -> Weights:
        """As of a source. Raises ModelUnavailable, with what each source says, if none has it."""
        for source in self._sources:
            if weights := source.fetch(spec):
                _report(spec, weights)
                return weights
        said = "; ".join(f"{each.name}: {each.why_not(spec)}" for each in self._sources)
        raise ModelUnavailable(
            f"{spec.name} has no weights in this deployment: bake it into the image or onto the "
            f"volume, or serve other models (PIXPOD_MODELS). {said}"
        )


def _report(spec: ModelSpec, weights: Weights) -> None:
    found = {"model": spec.name, "source": weights.source, "revision": weights.revision}
    if spec.revision and weights.revision != spec.revision:
        pinned = {"pinned_revision": spec.revision}
        log.warning("weights are not of the pinned revision", extra=found | pinned)
    else:
        log.info("weights found", extra=found)

"""Components that several models have in common are held once. POLICY, values only.

T5, CLIP and VAE of a FLUX model are 9.3 GiB: with two of them that is what a card of 48 GB lacks.
"""

from collections.abc import Mapping

from pixpod.catalog import Family, ModelSpec, Precision
from pixpod.engine.memory.footprints import LARGE_ENCODER, Held
from pixpod.engine.memory.needs import Part, part_of
from pixpod.weights.layout import Weights, content_of


class Sharing:
    """Names the parts of all models on a device: the same bytes in the same precision are one
    part, called after the model that was asked about first. For any thread.
    """

    def __init__(self) -> None:
        self._parts: dict[tuple[str, Precision, Precision | None], Part] = {}

    def parts_of(self, spec: ModelSpec, held: Held, weights: Weights | None) -> Mapping[str, Part]:
        """By component. Without a manifest nothing is known to be the same, nor without weights.

        Raises WeightsUnreadable.
        """
        return {name: self._part_of(spec, name, held, weights) for name in spec.family.components}

    def _part_of(
        self, spec: ModelSpec, component: str, held: Held, weights: Weights | None
    ) -> Part:
        own = part_of(spec, component, held.precision)
        if weights is None or component == spec.family.denoiser:
            return own
        content = content_of(weights, component)
        if content is None:
            return own
        wide = Precision.BFLOAT16 if held.precision.is_8_bit else held.precision
        is_t5 = spec.family is Family.FLUX and component == LARGE_ENCODER
        return self._parts.setdefault((content, wide, held.t5 if is_t5 else None), own)

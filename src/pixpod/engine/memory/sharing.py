"""Finds components that several models have in common, which are kept once. Values only.

T5, CLIP and VAE of a FLUX model are 9.3 GiB: with two such models, a GPU of 48 GB lacks just that.
"""

from collections.abc import Mapping

from pixpod.catalog import ModelSpec
from pixpod.engine.component_key import ComponentKey, component_key
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.families import Precision
from pixpod.weights.layout import Weights, content_of


class Sharing:
    """Names the components of all models on a device.

    The same bytes in the same precision are one component, named after the first model that had
    it. Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._keys: dict[tuple[str, Precision, Precision | None], ComponentKey] = {}

    def keys_of(
        self, spec: ModelSpec, plan: QuantizationPlan, weights: Weights | None
    ) -> Mapping[str, ComponentKey]:
        """Return the keys by component. Nothing is shared without weights that have a manifest.

        Raises WeightsUnreadable.
        """
        return {
            name: self._key_of(spec, name, plan, weights) for name in spec.family.component_names
        }

    def _key_of(
        self, spec: ModelSpec, component: str, plan: QuantizationPlan, weights: Weights | None
    ) -> ComponentKey:
        own = component_key(spec, component, plan.precision)
        if weights is None or component == spec.family.denoiser:
            return own
        content = content_of(weights, component)
        if content is None:
            return own
        loaded_as = Precision.BFLOAT16 if plan.precision.is_8_bit else plan.precision
        quantized = plan.t5 if component == spec.family.large_text_encoder else None
        return self._keys.setdefault((content, loaded_as, quantized), own)

"""Conditions under which a scale of classifier-free guidance has an effect."""

from pixpod.families import FamilySpec, Guidance
from pixpod.job import Sampling


def is_guided(scale: float | None) -> bool:
    """Return whether the denoiser runs for the negative prompt as well: at a scale above 1."""
    return scale is not None and scale > 1


def uses_negative_prompt(family: FamilySpec, sampling: Sampling) -> bool:
    """Return whether a request's sampling reads the negative prompt."""
    if family.guidance is Guidance.CLASSIFIER_FREE:
        return is_guided(sampling.guidance_scale)
    return is_guided(sampling.true_cfg_scale)

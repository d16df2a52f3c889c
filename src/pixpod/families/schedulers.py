"""Schedulers that several families offer, under diffusers' class names and the usual aliases."""

from collections.abc import Mapping

from pixpod.families.spec import SchedulerSpec

MAX_DISTILLED_STEPS = 50
"""`original_inference_steps` of LCMScheduler and TCDScheduler in diffusers 0.42, their limit."""

_EULER = SchedulerSpec(
    class_name="EulerDiscreteScheduler",
    options={"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False},
)
_TRAILING = {"timestep_spacing": "trailing"}
"""Few-step models are distilled to begin at the noisiest timestep."""

_EULER_TRAILING = SchedulerSpec(
    class_name=_EULER.class_name, options={**_EULER.options, **_TRAILING}
)
_EULER_ANCESTRAL = SchedulerSpec(class_name="EulerAncestralDiscreteScheduler")
_EULER_ANCESTRAL_TRAILING = SchedulerSpec(class_name=_EULER_ANCESTRAL.class_name, options=_TRAILING)
_UNIPC = SchedulerSpec(
    class_name="UniPCMultistepScheduler", options={"use_karras_sigmas": False, "solver_order": 2}
)
_DDIM = SchedulerSpec(
    class_name="DDIMScheduler",
    # diffusers clips latents to -1 ... 1 by default, which is meant for pixels
    options={"clip_sample": False, "thresholding": False},
)
_DDIM_TRAILING = SchedulerSpec(class_name=_DDIM.class_name, options={**_DDIM.options, **_TRAILING})
_HEUN = SchedulerSpec(
    class_name="HeunDiscreteScheduler", options={"use_karras_sigmas": False}, calls_per_step=2
)
_DEIS = SchedulerSpec(class_name="DEISMultistepScheduler", options={"use_karras_sigmas": False})
_LCM = SchedulerSpec(
    class_name="LCMScheduler", options={"clip_sample": False}, max_steps=MAX_DISTILLED_STEPS
)
_TCD = SchedulerSpec(
    class_name="TCDScheduler", options={"clip_sample": False}, max_steps=MAX_DISTILLED_STEPS
)


def _dpm(*, algorithm_type: str, use_karras_sigmas: bool) -> SchedulerSpec:
    return SchedulerSpec(
        class_name="DPMSolverMultistepScheduler",
        options={
            "algorithm_type": algorithm_type,
            "use_karras_sigmas": use_karras_sigmas,
            "solver_order": 2,
        },
    )


_DPM_2M = _dpm(algorithm_type="dpmsolver++", use_karras_sigmas=False)

_BY_CLASS = (_EULER, _EULER_ANCESTRAL, _DPM_2M, _UNIPC, _DDIM, _HEUN, _DEIS, _LCM, _TCD)

UNET_SCHEDULERS: Mapping[str, SchedulerSpec] = {
    **{each.class_name: each for each in _BY_CLASS},
    "Euler": _EULER,
    "Euler a": _EULER_ANCESTRAL,
    "Euler trailing": _EULER_TRAILING,
    "Euler a trailing": _EULER_ANCESTRAL_TRAILING,
    "DPM++ 2M": _DPM_2M,
    "DPM++ 2M Karras": _dpm(algorithm_type="dpmsolver++", use_karras_sigmas=True),
    "DPM++ 2M SDE": _dpm(algorithm_type="sde-dpmsolver++", use_karras_sigmas=False),
    "DPM++ 2M SDE Karras": _dpm(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
    "UniPC": _UNIPC,
    "DDIM": _DDIM,
    "DDIM trailing": _DDIM_TRAILING,
    "Heun": _HEUN,
    "DEIS": _DEIS,
    "LCM": _LCM,
    "TCD": _TCD,
}
"""LMS and DPM++ SDE are left out: they need scipy and torchsde."""

_FLOW_MATCH_EULER = SchedulerSpec(class_name="FlowMatchEulerDiscreteScheduler")

FLOW_MATCH_SCHEDULERS: Mapping[str, SchedulerSpec] = {
    "FlowMatchEulerDiscreteScheduler": _FLOW_MATCH_EULER,
    "Euler": _FLOW_MATCH_EULER,
}

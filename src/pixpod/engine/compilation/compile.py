"""Compiles the regions of a loaded model: from packages, else just in time, else not at all.

Families name their regions. FLUX is compiled by its blocks: as fast as compiling the whole and
ready in a seventh of the time (9.6 instead of 67.4 s: PyTorch's developer log of 2026-05-11).
Per-row FP8 must be compiled, or it is slower than bfloat16 (H100, 28 steps: 8.62 s eager, 3.44 s
compiled; bfloat16 6.57 and 4.21 s: diffusers-torchao). UNets are compiled as a whole: they are
made of many small kernels, which pays if they are launched at less cost. Text encoders stay eager:
T5 takes 6 ms of a second.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from pixpod.engine.compilation.calls import (
    Compiled,
    NotCompiledFor,
    PackageCompiled,
    RegionForward,
    Runner,
    example_call,
    is_close,
    jit_compiled,
)
from pixpod.engine.compilation.cuda_graphs import CudaGraphs, GraphedRegion
from pixpod.engine.compilation.regions import kind_of
from pixpod.engine.compilation.store import CompiledStore, CompileKey, UnusablePackage
from pixpod.engine.device import name_device
from pixpod.engine.device_probe import processor_name
from pixpod.engine.model import Compilation, LoadedModel
from pixpod.families import FamilySpec, RegionSpec

log = logging.getLogger(__name__)

Options = Mapping[str, bool | str]


PACKAGE_OPTIONS: Mapping[str, Options] = {
    "cpu": {},
    "cuda": {
        "max_autotune": True,
        "coordinate_descent_tuning": True,
        "conv_1x1_as_mm": True,
        "epilogue_fusion": False,
    },
}
"""Inductor's settings for packages, by device: there is time to try kernels when these are built.
They are those of torchao's `recommended_inductor_config_setter` and of huggingface/flux-fast."""


def regions_for(family: FamilySpec, device: torch.device) -> tuple[RegionSpec, ...]:
    """Return the family's regions with the options that a device supports."""
    if device.type == "cuda":
        return family.regions
    return tuple(
        replace(region, is_channels_last=False, has_cuda_graphs=False) for region in family.regions
    )


def compile_key_of(device: torch.device) -> CompileKey:
    """Return the key that packages must have been built for to run on this device."""
    is_cuda = device.type == "cuda"
    options = json.dumps(PACKAGE_OPTIONS[device.type])
    versions = {name: _version(name) for name in ("torchao", "triton", "diffusers")}
    versions["torch"] = torch.__version__
    versions["recipe"] = hashlib.sha256(options.encode()).hexdigest()[:8]
    major_minor = torch.cuda.get_device_capability(device) if is_cuda else ()
    return CompileKey(
        device_name=name_device(device) if is_cuda else processor_name() or "cpu",
        capability=".".join(map(str, major_minor)) or torch.backends.cpu.get_cpu_capability(),
        versions=versions,
    )


def prepare(model: LoadedModel) -> None:
    """Lay the memory of a model out as it is compiled; packages are built after this, too."""
    for region in regions_for(model.spec.family, model.device):
        if region.is_channels_last:
            use_channels_last(model.components[region.component])


def use_channels_last(module: nn.Module) -> None:
    """Change the memory format of convolution weights in place. The weights are views of one
    storage, which would stay allocated as a whole if some of them moved to memory of their own.
    """
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 4 and weight.is_contiguous():
                turned = weight.permute(0, 2, 3, 1).contiguous()
                weight.view(-1).copy_(turned.view(-1))
                strides = turned.permute(0, 3, 1, 2).stride()
                weight.data = weight.data.as_strided(weight.shape, strides)


def find_regions(component: nn.Module, spec: RegionSpec) -> dict[str, list[nn.Module]]:
    """Return a component's modules of the region's classes by kind."""
    found: dict[str, list[nn.Module]] = {}
    for module in component.modules():
        if type(module).__name__ in spec.classes:
            found.setdefault(kind_of(module, component), []).append(module)
    return found


def compile_model(
    model: LoadedModel,
    store: CompiledStore,
    *,
    backend: str | None = None,
    only: Collection[str] | None = None,
) -> Compilation:
    """Have a model's regions run compiled from now on. Takes about a second: what is not in the
    store is compiled when it is first called, and runs eagerly if that fails.

    `backend` is torch.compile's; None is inductor on a GPU and none on a CPU, where a compiler
    would take longer than many small images. Components that another model has had compiled
    already are left alone, and so are all but those of `only`.
    """
    backend = backend or ("inductor" if model.device.type == "cuda" else None)
    compilation = Compilation(model=model.spec.name)
    compile_key = compile_key_of(model.device)
    prepare(model)
    for spec in regions_for(model.spec.family, model.device):
        if only is not None and spec.component not in only:
            continue
        regions = find_regions(model.components[spec.component], spec)
        forward = next(iter(regions.values()))[0].forward
        if isinstance(forward, RegionForward):
            compilation.modes[spec.component] = forward.mode
        else:
            _compile_component(spec, regions, store, compile_key, compilation, backend)
    log.info("compilation", extra={"model": model.spec.name, "modes": dict(compilation.modes)})
    return compilation


def _compile_component(
    spec: RegionSpec,
    regions: Mapping[str, list[nn.Module]],
    store: CompiledStore,
    compile_key: CompileKey,
    compilation: Compilation,
    backend: str | None,
) -> None:
    """Compile a component's regions: all kinds from packages, or all by the compiler."""
    name = spec.component
    compiled: Mapping[str, Compiled] | None = None
    reason = None
    try:
        compiled = dict(_load_packages(regions, store, compile_key))
    except UnusablePackage as exc:
        reason = f"its package is not used: {exc}"
        log.warning(
            "compiled package not used",
            extra={"model": compilation.model, "component": name, "reason": str(exc)},
        )
    if compiled is not None and compiled.keys() == regions.keys():
        compilation.modes[name] = "package"
    elif backend:
        compilation.modes[name] = "jit"
        compiled = {kind: jit_compiled(those[0], backend) for kind, those in regions.items()}
    elif reason:
        compilation.run_eagerly(name, reason)
        return
    else:
        compilation.modes[name] = "eager"
        return
    if spec.has_cuda_graphs:
        device = next(regions[next(iter(regions))][0].parameters()).device
        compiled = {
            kind: GraphedRegion(each, CudaGraphs(device)) for kind, each in compiled.items()
        }
    for kind, those in regions.items():
        for region in those:
            forward = RegionForward(region, name, compiled[kind], compilation)
            region.forward = forward


def _load_packages(
    regions: Mapping[str, list[nn.Module]], store: CompiledStore, compile_key: CompileKey
) -> Iterator[tuple[str, Compiled]]:
    """Yield the packages of the kinds, each checked against a region. Raises UnusablePackage."""
    for kind, those in regions.items():
        package = store.find(compile_key, kind)
        if package is None:
            return
        try:
            compiled = PackageCompiled(open_package(package.path), package.form)
            verify(those[0], compiled)
        except (RuntimeError, ValueError, OSError) as exc:  # errors of its loader and its code
            reason = f"{package.path.name} does not run here ({type(exc).__name__})"
            raise UnusablePackage(reason) from exc
        yield kind, compiled


def open_package(path: Path) -> Runner:
    """Load the code of a file for one thread, on the current device.

    torch's own `aoti_load_package` first has a C++ compiler try the processor's vector
    instructions, which takes seconds in a fresh container. The compile key covers that check.
    """
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)
    run: Runner = loader.boxed_run
    return run


def verify(region: nn.Module, compiled: PackageCompiled) -> None:
    """Raise UnusablePackage unless the package computes what the region does."""
    device = next(region.parameters()).device
    call = example_call(compiled.form, device)
    args, kwargs = tree_unflatten(call.leaves, call.spec)
    with torch.inference_mode():
        try:
            found = tree_leaves(compiled(region, call))
        except NotCompiledFor as exc:
            raise UnusablePackage("its own example does not fit it") from exc
        expected = tree_leaves(region(*args, **kwargs))
    if not is_close(found, expected):
        raise UnusablePackage(f"it computes something else than {type(region).__name__}")


def _version(package: str) -> str:
    """Return a package's version; `none` for triton in a torch without CUDA."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"

"""Imports torch, transformers and diffusers without what a worker's first image cannot need.

A plain import of the classes that we use takes three times as long as torch. Most of it is for
parts that no plain image uses: the compiler (torch._dynamo and _inductor, which bring sympy),
torch.distributed, all of torchao, and lists of hundreds of models. `lean_imports` defers these
until something asks for one of their names. Then the real code runs, and does what was asked for
meanwhile. Other packages are kept from being probed. This file has everything that is replaced;
tests compare it with the installed libraries.
"""

import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import TypeVar

from pixpod.engine.imports.deferral import defer, has_run, hidden, imported_names, run

HIDDEN = ("peft", "accelerate", "torchao")
"""Packages that diffusers and transformers use if they are there, and we do not through them."""

DIFFUSERS = (
    "diffusers.hooks",
    "diffusers.models.autoencoders",
    "diffusers.models.controlnets",
    "diffusers.models.transformers",
    "diffusers.models.unets",
)
"""Packages whose own code only imports every module in them."""

TORCHAO = (
    "torchao",
    "torchao.float8",
    "torchao.prototype",
    "torchao.quantization",
    "torchao.quantization.quantize_",
    "torchao.quantization.quantize_.workflows",
    "torchao.quantization.quantize_.workflows.float8",
)
"""Packages around torchao's class of float8 tensors, which itself needs little of them."""

_FLOAT8_TENSOR = "torchao.quantization.quantize_.workflows.float8.float8_tensor"

_F = TypeVar("_F")

_TRANSFORM = "TransformGetItemToIndex"

Span = Callable[[str], AbstractContextManager[None]]
"""Times a block by the name of what it imports."""

TRANSFORMERS_PLACES: Mapping[str, str] = {
    "PreTrainedModel": "modeling_utils.PreTrainedModel",
    "PreTrainedTokenizer": "tokenization_python.PythonBackend",
    "AutoTokenizer": "models.auto.tokenization_auto.AutoTokenizer",
    "AutoImageProcessor": "models.auto.image_processing_auto.AutoImageProcessor",
    "CLIPTextModel": "models.clip.modeling_clip.CLIPTextModel",
    "CLIPTextModelWithProjection": "models.clip.modeling_clip.CLIPTextModelWithProjection",
    "CLIPConfig": "models.clip.configuration_clip.CLIPConfig",
    "CLIPVisionModel": "models.clip.modeling_clip.CLIPVisionModel",
    "CLIPVisionModelWithProjection": "models.clip.modeling_clip.CLIPVisionModelWithProjection",
    "CLIPTokenizer": "models.clip.tokenization_clip.CLIPTokenizer",
    "CLIPImageProcessor": "models.clip.image_processing_pil_clip.CLIPImageProcessorPil",
    "T5EncoderModel": "models.t5.modeling_t5.T5EncoderModel",
    "T5Tokenizer": "models.t5.tokenization_t5.T5Tokenizer",
    "T5TokenizerFast": "models.t5.tokenization_t5.T5Tokenizer",
    "CLIPTokenizerFast": "models.clip.tokenization_clip.CLIPTokenizer",
    "Qwen2Tokenizer": "models.qwen2.tokenization_qwen2.Qwen2Tokenizer",
    "Qwen2TokenizerFast": "models.qwen2.tokenization_qwen2.Qwen2Tokenizer",
    "Qwen3ForCausalLM": "models.qwen3.modeling_qwen3.Qwen3ForCausalLM",
    "Qwen3Model": "models.qwen3.modeling_qwen3.Qwen3Model",
    "SiglipVisionModel": "models.siglip.modeling_siglip.SiglipVisionModel",
    "SiglipImageProcessor": "models.siglip.image_processing_pil_siglip.SiglipImageProcessorPil",
}
"""Places of the names that pipelines import. Without them transformers reads the text of all its
2,000 files about models. Image processors are those of an installation without torchvision."""


class QuickDistributions(Mapping[str, list[str]]):
    """Stands in for `importlib.metadata.packages_distributions()`, which opens every installed file
    list. Reads them only for packages that no distribution is named after.
    """

    @functools.cached_property
    def _all(self) -> Mapping[str, list[str]]:
        return _packages_distributions()

    def __getitem__(self, package: str) -> list[str]:
        try:
            return [importlib.metadata.metadata(package)["Name"]]
        except (importlib.metadata.PackageNotFoundError, ValueError):
            return self._all[package]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


_packages_distributions = importlib.metadata.packages_distributions


@contextmanager
def lean_imports(span: Span = lambda name: nullcontext()) -> Iterator[None]:
    """Import torch, transformers and diffusers, then what the block imports, without what is
    deferred or hidden. `span` times the import of a library.

    Imports all of them in the plain way where others have imported one already. One thread at a
    time.
    """
    is_first = not {"transformers", "diffusers", "torchao", "torch._dynamo"} & {*sys.modules}
    with span("torch"):
        import torch
    if not is_first:
        with span("pixpod"):
            yield
        return
    # torch's C++ asks for this class once, at the first operation of any subclass of Tensor
    defer(
        "torch.distributed.tensor",
        given={"DTensor": type("DTensor", (torch.Tensor,), {})},
        runs_first=True,
    )
    _defer_compiler(is_compiling=torch.compiler.is_compiling)
    with span("torchao"):
        _import_float8()
    with (
        hidden(*HIDDEN),
        _replaced(torch.distributed, "is_available", lambda: False),
        _replaced(importlib.metadata, "packages_distributions", QuickDistributions),
    ):
        with span("transformers"):
            transformers = _defer_transformers()
        # runs transformers a second time, for the names of models that it looks up later
        with _replaced(transformers.utils, "direct_transformers_import", lambda path: transformers):
            with span("transformers"):
                importlib.import_module("transformers.modeling_utils")
            with span("diffusers"):
                _defer_diffusers()
                importlib.import_module("diffusers.pipelines.pipeline_utils")
            with span("pixpod"):
                yield


def has_compiler() -> bool:
    """Return whether torch's compiler was imported. Nothing is compiled before."""
    compiler = sys.modules.get("torch._dynamo")
    return compiler is not None and has_run(compiler)


def _defer_compiler(*, is_compiling: Callable[[], bool]) -> None:
    """Defer torch's compiler. What is decorated or registered meanwhile is done when it runs."""
    missed: list[Callable[[], object]] = []

    def allow_in_graph(function: _F) -> _F:
        missed.append(lambda: _compiler().allow_in_graph(function))
        return function

    def assume_constant_result(function: _F) -> _F:
        missed.append(lambda: _compiler().assume_constant_result(function))
        return function

    def disable(
        function: Callable[..., object] | None = None,
        recursive: bool = True,
        *,
        reason: str | None = None,
        wrapping: bool = True,
    ) -> Callable[..., object]:
        options = {"recursive": recursive, "reason": reason, "wrapping": wrapping}
        if function is None:
            return lambda function: disable(function, recursive, reason=reason, wrapping=wrapping)
        target = function

        @functools.wraps(function)
        def call(*args: object, **kwargs: object) -> object:
            return target(*args, **kwargs)

        def disable_now() -> None:
            nonlocal target
            target = _compiler().disable(function, **options)

        missed.append(disable_now)
        return call

    defer(
        "torch._dynamo",
        given={
            "allow_in_graph": allow_in_graph,
            "assume_constant_result": assume_constant_result,
            "disable": disable,
            "is_compiling": is_compiling,
            # before it runs there are no compiled modules
            "eval_frame": SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {})),
        },
        afterwards=lambda: _do(missed),
        runs_first=True,
    )
    transforms = "torch._dynamo._trace_wrapped_higher_order_op"
    defer(transforms, given={_TRANSFORM: lambda: getattr(_run(transforms), _TRANSFORM)()})
    _defer_decompositions()


def _defer_decompositions() -> None:
    missed: list[Callable[[], object]] = []
    decompositions = "torch._inductor.decomposition"

    def register_decomposition(operators: object) -> Callable[[_F], _F]:
        def register(function: _F) -> _F:
            missed.append(lambda: _run(decompositions).register_decomposition(operators)(function))
            return function

        return register

    defer("torch._inductor", runs_first=True)
    defer(
        decompositions,
        given={"register_decomposition": register_decomposition},
        afterwards=lambda: _do(missed),
    )


def _import_float8() -> None:
    """Import the class of float8 tensors without the packages around it."""
    for name in TORCHAO:
        # whoever wants quantisation gets its kernels, which the top package loads
        wants_all = name == "torchao.quantization"
        defer(name, afterwards=(lambda: run(sys.modules["torchao"])) if wants_all else lambda: None)
    products = "torchao.kernel.intmm."
    defer(
        "torchao.kernel",
        places={name: products + name for name in ("int_scaled_matmul", "safe_int_mm")},
    )
    importlib.import_module(_FLOAT8_TENSOR)


def _defer_transformers() -> ModuleType:
    """Return the package, which has not run."""
    defer(
        "transformers",
        given={"__version__": importlib.metadata.version("transformers")},
        places={name: f"transformers.{place}" for name, place in TRANSFORMERS_PLACES.items()},
    )
    defer("transformers.models")
    importlib.import_module("transformers.utils")
    return sys.modules["transformers"]


def _defer_diffusers() -> None:
    for name in DIFFUSERS:
        importlib.import_module(name.rpartition(".")[0])
        defer(name, places=imported_names(name))


@contextmanager
def _replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def _compiler() -> ModuleType:
    return sys.modules["torch._dynamo"]


def _run(name: str) -> ModuleType:
    run(sys.modules[name])
    return sys.modules[name]


def _do(missed: list[Callable[[], object]]) -> None:
    for each in missed:
        each()
    missed.clear()

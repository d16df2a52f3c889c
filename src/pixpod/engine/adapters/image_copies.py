"""Keeps weight-sharing copies of denoisers that attend to images."""

from collections import OrderedDict
from dataclasses import dataclass

from pixpod.engine.adapters.copies import CompileCopy
from pixpod.engine.model import Compilation, Component, LoadedModel

MAX_COPIES = 16
"""One for each model and adapter in use. A copy has no weights of its own."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageCopy:
    """A copy of a denoiser; `compilation` is None where nothing is compiled."""

    module: Component
    compilation: Compilation | None

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self.compilation.warnings) if self.compilation else ()


class ImageCopies:
    """Copies for all models on a device. For the device's thread alone.

    `compile_copy` compiles a denoiser's copy, None where nothing is compiled.
    """

    def __init__(self, compile_copy: CompileCopy | None = None) -> None:
        self._compile_copy = compile_copy
        self._copies: OrderedDict[tuple[Component, Component], ImageCopy] = OrderedDict()

    def get(self, model: LoadedModel, adapter: str) -> ImageCopy:
        """Return the copy of a model's denoiser with an adapter; the same one each time."""
        key = (model.denoiser, model.extras[adapter].module)
        if key not in self._copies:
            self._copies[key] = self._build(model, *key)
        self._copies.move_to_end(key)
        while len(self._copies) > MAX_COPIES:
            self._copies.popitem(last=False)
        return self._copies[key]

    def warnings(self, module: Component) -> tuple[str, ...]:
        """Return messages for callers about a copy's module, none for any other."""
        found = (copy.warnings for copy in self._copies.values() if copy.module is module)
        return next(found, ())

    def _build(self, model: LoadedModel, denoiser: Component, adapter: Component) -> ImageCopy:
        module = adapter.on_copy_of(denoiser)
        compilation = None
        if self._compile_copy is not None:
            components = {**model.components, model.spec.family.denoiser: module}
            compilation = self._compile_copy(model.with_components(components))
        return ImageCopy(module=module, compilation=compilation)

"""Replaces a region's `forward`: by a package, a compiled function, or the original.

`forward` is replaced, not the module: hooks that skip whole blocks then wrap the compiled code.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch
import torch.fx.experimental._config as symbolic_shapes
from torch import nn
from torch.utils._pytree import TreeSpec, tree_unflatten, treespec_loads

from pixpod.engine.compilation.regions import Call, Slot, granularity, read_weights, weight_slots
from pixpod.engine.compilation.store import CallForm, Leaf
from pixpod.engine.imports.libraries import has_compiler
from pixpod.engine.model import Compilation
from pixpod.engine.scheduling.device_watch import pausing_watch

log = logging.getLogger(__name__)

RECOMPILE_LIMIT = 64
"""Maximum number of graphs for one piece of code: two for each kind of region, for one row and for
more, and all models of a family share their code. Four FLUX models reach the default of 8."""

Runner = Callable[[list[torch.Tensor]], list[torch.Tensor]]
"""Loaded code: weights and arguments in, the leaves of the result out."""


class NotCompiledFor(Exception):
    """A call has another form than the compiled code; it has to run eagerly. The text says why."""


_eager_calls: ContextVar[dict[str, None] | None] = ContextVar("eager_calls", default=None)


@contextmanager
def collecting_eager_calls() -> Iterator[Mapping[str, None]]:
    """Collect warnings about regions that run eagerly in this block because of a call's form.

    Each region and form has one warning, however often it is called.
    """
    found: dict[str, None] = {}
    token = _eager_calls.set(found)
    try:
        yield found
    finally:
        _eager_calls.reset(token)


Compiled = Callable[[nn.Module, Call], object]
"""Runs a region in another way than its own. Raises NotCompiledFor, and TorchDynamoException if the
region cannot be compiled.
"""


class RegionForward:
    """Callable like the `forward` that it replaces."""

    def __init__(
        self, region: nn.Module, component: str, compiled: Compiled, compilation: Compilation
    ) -> None:
        self.eager = region.forward
        self._region = region
        self._component = component
        self._compiled = compiled
        self._compilation = compilation
        self._slot = weight_slots(region)[0]
        self._granularity = granularity(region)
        functools.update_wrapper(self, self.eager)

    @property
    def mode(self) -> str:
        """The component's present entry in `Compilation.modes`."""
        return self._compilation.modes[self._component]

    def __call__(self, *args: object, **kwargs: object) -> object:
        if self.mode == "eager":
            return self.eager(*args, **kwargs)
        call = Call.of(args, kwargs, self._slot.weight.device)
        try:
            self._check_sides(call)
            return self._compiled(self._region, call)
        except NotCompiledFor as exc:
            self._report(str(exc))
            return self.eager(*args, **kwargs)
        except _compiler_faults() as exc:
            self._compilation.run_eagerly(self._component, f"{type(exc).__name__} while compiling")
            log.warning("compiling failed", exc_info=exc)
            return self.eager(*args, **kwargs)

    def _check_sides(self, call: Call) -> None:
        """Raise NotCompiledFor for sides that are not multiples of the region's granularity."""
        if self._granularity == 1:
            return
        height, width = next(call.tensors).shape[-2:]
        if height % self._granularity or width % self._granularity:
            raise NotCompiledFor(
                f"expected latents with sides that are multiples of {self._granularity}, "
                f"got {width}x{height}"
            )

    def _report(self, reason: str) -> None:
        warning = f"{self._component} ran eagerly, which is slower: {reason}"
        found = _eager_calls.get()
        if found is None or warning in found:
            return
        found[warning] = None
        log.warning(
            "called in a form that is not compiled",
            extra={
                "region": type(self._region).__name__,
                "component": self._component,
                "reason": reason,
            },
        )


def jit_compiled(region: nn.Module, backend: str) -> Compiled:
    """Compile regions of this kind in this process, with code that they share.

    Sizes are variables from the start: a new aspect ratio is no reason to compile again.
    """
    jit = torch.compile(type(region).forward, fullgraph=True, dynamic=True, backend=backend)

    def call_jit(region: nn.Module, call: Call) -> object:
        _configure_compiler()
        args, kwargs = tree_unflatten(call.leaves, call.spec)
        result: object = jit(region, *args, **kwargs)
        return result

    return call_jit


@contextmanager
def pausing_watch_while_compiling() -> Iterator[None]:
    """Exempt compiling from the watch over this thread during the block: it takes minutes."""
    if not has_compiler():
        yield
        return
    from torch._dynamo.callback import CallbackArgs, callback_handler

    pause = ExitStack()

    def begin(args: CallbackArgs) -> None:
        pause.enter_context(pausing_watch())

    def end(args: CallbackArgs) -> None:
        pause.close()

    callback_handler.register_start_callback(begin)
    callback_handler.register_end_callback(end)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(begin)
        callback_handler.remove_end_callback(end)
        pause.close()


def _compiler_faults() -> type[Exception]:
    """Return the class of the compiler's own errors."""
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


def _configure_compiler() -> None:
    """Configure torch's compiler for this thread: torch reads these settings, which are kept by
    thread, when it compiles.

    Without the first setting, equal sizes are one variable, and a square image needs a graph of
    its own.
    """
    if symbolic_shapes.use_duck_shape:
        symbolic_shapes.use_duck_shape = False
    if torch._dynamo.config.recompile_limit != RECOMPILE_LIMIT:
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT


class PackageCompiled:
    """Runs regions of one kind with code that was compiled ahead of time."""

    def __init__(self, run: Runner, form: CallForm) -> None:
        self._run = run
        self.form = form
        self._growing = form.growing
        self._arguments: TreeSpec = treespec_loads(form.arguments)
        self._result: TreeSpec = treespec_loads(form.result)
        self._slots: dict[nn.Module, tuple[Slot, ...]] = {}

    def __call__(self, region: nn.Module, call: Call) -> object:
        if call.spec != self._arguments:
            raise NotCompiledFor("expected the arguments that it was compiled with, got others")
        for leaf, expected in zip(call.leaves, self.form.leaves, strict=True):
            if not _is_served(leaf, expected):
                raise NotCompiledFor(f"expected {_describe_leaf(expected)}, got {_describe(leaf)}")
        num_elements = call.leaves[self._growing].numel()
        if num_elements > self.form.max_elements:
            raise NotCompiledFor(
                f"expected at most {self.form.max_elements} elements in an argument, "
                f"got {num_elements}"
            )
        slots = self._slots.get(region) or self._slots.setdefault(region, weight_slots(region))
        return tree_unflatten(self._run([*read_weights(slots), *call.tensors]), self._result)


def example_call(form: CallForm, device: torch.device) -> Call:
    """Return a call of this form, with the same random numbers each time."""
    generator = torch.Generator().manual_seed(0)
    leaves = [
        leaf.constant
        if leaf.shape is None
        else torch.randn(leaf.example, generator=generator).to(
            device, getattr(torch, leaf.dtype or "")
        )
        for leaf in form.leaves
    ]
    return Call(leaves=tuple(leaves), spec=treespec_loads(form.arguments))


def is_close(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Return whether the results of compiled code are close enough to those of the region.

    The bounds are those of images: in float32 1/255 of the range of values; in 16 bits and less,
    where sums are rounded in another order, a peak signal-to-noise ratio of 40 dB. There a single
    value may be off by 1/16 of the range, more than in an image: FP8 has a mantissa of three bits.
    """
    return all(_is_close(one, other) for one, other in zip(found, expected, strict=True))


def _is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    most = 1 / 255 if expected.dtype == torch.float32 else 1 / 16
    found, expected = found.double(), expected.double()
    peak = expected.max() - expected.min()
    difference = (found - expected).abs()
    noise = difference.square().mean().sqrt()
    is_good = (difference.max() <= most * peak) & (noise <= peak / 100)
    return bool(is_good.item())  # a NaN is no smaller than anything


def _is_served(leaf: object, expected: Leaf) -> bool:
    if expected.shape is None or not isinstance(leaf, torch.Tensor):
        is_equal = type(leaf) is type(expected.constant) and leaf == expected.constant
        return expected.shape is None and is_equal
    return (
        str(leaf.dtype) == f"torch.{expected.dtype}"
        and leaf.ndim == len(expected.shape)
        and all(
            allowed in (size, None)
            for size, allowed in zip(leaf.shape, expected.shape, strict=True)
        )
    )


def _describe_leaf(expected: Leaf) -> str:
    if expected.shape is None:
        return repr(expected.constant)
    sizes = "x".join("?" if size is None else str(size) for size in expected.shape)
    return f"{expected.dtype} of {sizes}"


def _describe(leaf: object) -> str:
    if isinstance(leaf, torch.Tensor):
        dtype = str(leaf.dtype).removeprefix("torch.")
        return f"{dtype} of {'x'.join(map(str, leaf.shape))}"
    return repr(leaf) if isinstance(leaf, bool | int | float | None) else type(leaf).__name__

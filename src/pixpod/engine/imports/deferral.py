"""Modules whose own code runs once something in it is asked for.

They do what `importlib.util.LazyLoader` does, with two differences: modules inside such a package
can be imported without running the package, and some names can be given beforehand.
"""

import ast
import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import MappingProxyType, ModuleType

_OF_THE_IMPORT_SYSTEM = frozenset(
    {"__path__", "__file__", "__cached__", "__wrapped__", "__builtins__"}
)
"""Names that Python and debuggers look for in any module; a deferred one has them or never will."""


@dataclass
class _State:
    """Loading state of a deferred module, in its spec, where LazyLoader keeps its own."""

    given: Mapping[str, object]
    places: Mapping[str, str]
    afterwards: Callable[[], None]
    runs_first: bool
    lock: "threading.RLock" = field(default_factory=threading.RLock)
    is_running: bool = False
    has_run: bool = False
    successor: ModuleType | None = None
    """The module that it has put in its own place, which transformers does."""


class DeferredModule(ModuleType):
    """A module that has not run yet. It becomes a plain one when it runs."""

    def __getattr__(self, name: str) -> object:
        if name in _OF_THE_IMPORT_SYSTEM:
            raise AttributeError(name)
        state = _state_of(self)
        if place := state.places.get(name):
            module, _, found_as = place.rpartition(".")
            return getattr(importlib.import_module(module), found_as)
        if not state.has_run and _has_only_module(self, name):
            return importlib.import_module(f"{self.__name__}.{name}")
        run(self)
        if state.successor is not None:
            return getattr(state.successor, name)
        if name not in vars(self):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return vars(self)[name]


def defer(
    name: str,
    *,
    given: Mapping[str, object] = MappingProxyType({}),
    places: Mapping[str, str] = MappingProxyType({}),
    afterwards: Callable[[], None] = lambda: None,
    runs_first: bool = False,
) -> None:
    """Put a module in place without running it. Its parents must be there; if it is, it stays.

    With `runs_first` it runs before any module in it is imported, as packages with circular imports
    need it.

    `given` are values that it has until it runs, and `places` where some of its names are
    defined, as `module.name`, to import them without it. `afterwards` is called once it has run.
    """
    if name in sys.modules:
        return
    if _RUN_FIRST not in sys.meta_path:
        sys.meta_path.insert(0, _RUN_FIRST)
    parent, _, leaf = name.rpartition(".")
    spec = _find(name)
    module = importlib.util.module_from_spec(spec)
    module.__class__ = DeferredModule
    spec.loader_state = _State(
        given=given, places=places, afterwards=afterwards, runs_first=runs_first
    )
    vars(module).update(given)
    sys.modules[name] = module
    if parent and not isinstance(sys.modules[parent], DeferredModule):
        setattr(sys.modules[parent], leaf, module)


@functools.cache
def imported_names(name: str) -> Mapping[str, str]:
    """Return the `places` of a package: what its own code imports from the modules in it."""
    origin = _find(name).origin
    code = ast.parse(Path(origin).read_text(encoding="utf-8") if origin else "")
    return {
        alias.asname or alias.name: f"{name}.{node.module}.{alias.name}"
        for node in ast.walk(code)
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for alias in node.names
    }


def run(module: ModuleType) -> None:
    """Run a module's own code if it is deferred, and wait if another thread does."""
    if not isinstance(module, DeferredModule):
        return
    state = _state_of(module)
    parent = sys.modules.get(module.__name__.rpartition(".")[0])
    if parent and _runs_first(parent):
        run(parent)
    with state.lock:
        if state.is_running or state.has_run:
            return
        state.is_running = True
        for name in state.given:
            vars(module).pop(name, None)
        try:
            assert module.__spec__ and module.__spec__.loader, "defer has found it"
            module.__spec__.loader.exec_module(module)
            state.has_run = True
        finally:
            state.is_running = False
            if not state.has_run:
                vars(module).update(state.given)
        in_place = sys.modules[module.__name__]
        state.successor = in_place if in_place is not module else None
        state.afterwards()


def has_run(module: ModuleType) -> bool:
    """Return whether a module's own code has run."""
    return not isinstance(module, DeferredModule) or _state_of(module).has_run


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Have these packages look as if they were not installed, to whoever imports or probes."""
    there = {name: sys.modules[name] for name in names if name in sys.modules}
    modules: MutableMapping[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    modules.update(dict.fromkeys(names))
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(there)


class _RunFirst(MetaPathFinder):
    """Has deferred packages of `runs_first` run before the modules in them are loaded.

    The loader runs them: importlib calls finders with a lock on all imports of all threads.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent = sys.modules.get(name.rpartition(".")[0])
        if parent is None or not _runs_first(parent):
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is None:
            return None
        spec = copy(found)
        spec.loader = _AfterPackage(parent, found)
        return spec


class _AfterPackage(Loader):
    """Loads a module after its package, which may have loaded it meanwhile."""

    def __init__(self, package: ModuleType, spec: ModuleSpec) -> None:
        self._package = package
        self._spec = spec
        self._there: ModuleType | None = None
        self._there_spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        run(self._package)
        self._there = sys.modules.get(spec.name)
        self._there_spec = self._there.__spec__ if self._there else None
        assert self._spec.loader, "PathFinder finds no namespaces in these packages"
        return self._there or self._spec.loader.create_module(self._spec)

    def exec_module(self, module: ModuleType) -> None:
        if self._there is not None:
            module.__spec__ = self._there_spec
            return
        module.__spec__ = self._spec
        assert self._spec.loader, "PathFinder finds no namespaces in these packages"
        self._spec.loader.exec_module(module)


_RUN_FIRST = _RunFirst()


def _runs_first(module: ModuleType) -> bool:
    if not isinstance(module, DeferredModule):
        return False
    state = _state_of(module)
    return state.runs_first and not state.has_run and not state.is_running


def _find(name: str) -> ModuleSpec:
    """Find a module whose parents are there, without running them. Raises ModuleNotFoundError."""
    parent = name.rpartition(".")[0]
    spec = PathFinder.find_spec(name, sys.modules[parent].__path__ if parent else None)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return spec


def _has_only_module(package: ModuleType, name: str) -> bool:
    """Return whether a name of a package is a module in it, and nothing that its code imports."""
    path = vars(package).get("__path__")
    full_name = f"{package.__name__}.{name}"
    if path is None or PathFinder.find_spec(full_name, path) is None:
        return False
    return name not in imported_names(package.__name__)


def _state_of(module: ModuleType) -> _State:
    assert module.__spec__, "modules that were imported have one"
    state = module.__spec__.loader_state
    assert isinstance(state, _State), "defer has set it"
    return state

"""RunPod Hub's `.runpod/tests.json`, and `test_input.json` for projects without one.

The fields are those of the Hub's publishing guide. Real files have others: a problem that does not
prevent a test from running is a warning, and only the others are refused.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runpod_emulator.command_line.project import TEST_INPUT
from runpod_emulator.errors import ConfigurationProblems, EmulatorError, InvalidConfiguration

HUB_TESTS = Path(".runpod/tests.json")

TOP_KEYS = ("tests", "config")
TEST_KEYS = ("name", "input", "timeout", "config")
CONFIG_KEYS = ("gpuTypeId", "gpuCount", "cpuFlavor", "env", "allowedCudaVersions")
ENV_KEYS = ("key", "value")
HTTP_KEYS = ("path", "method", "endpoint", "url", "request")
"""Keys of a test that calls a load-balancing endpoint; the guide does not mention such tests."""

A_TEST = '{"name": "...", "input": {...}}'


@dataclass(frozen=True, slots=True, kw_only=True)
class HubMachine:
    """The machine of a test. A CPU flavour and CUDA versions have no effect here."""

    gpu: str | None = None
    gpu_count: int | None = None
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubTest:
    """One job to run. `timeout_ms` is the longest execution."""

    name: str
    input: Mapping[str, Any] = field(repr=False)
    timeout_ms: int | None = None
    machine: HubMachine = HubMachine()


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """The tests of a file; `not_run` has the names of tests that are not for a queue endpoint."""

    tests: tuple[HubTest, ...]
    not_run: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def without_timeouts(self) -> "HubFile":
        return replace(self, tests=tuple(replace(test, timeout_ms=None) for test in self.tests))


def find_tests(directory: Path) -> HubFile:
    """Read the project's tests, or its test input if it has none. Raises EmulatorError."""
    if (directory / HUB_TESTS).is_file():
        return read_hub_tests(directory / HUB_TESTS)
    if (directory / TEST_INPUT).is_file():
        return read_test_input(directory / TEST_INPUT)
    raise EmulatorError(
        f"expected {HUB_TESTS} or {TEST_INPUT} in {directory.absolute()}, or --tests with a file"
    )


def read_hub_tests(path: Path) -> HubFile:
    """Read tests. Raises EmulatorError with everything that prevents a test from running."""
    return _Reader(path).hub_tests()


def read_test_input(path: Path) -> HubFile:
    """Read the job that `python handler.py` runs. Raises EmulatorError."""
    return _Reader(path).test_input()


class _Reader:
    """Reads one document, and collects its problems by key."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warnings: list[str] = []
        self._problems: list[InvalidConfiguration] = []

    def hub_tests(self) -> HubFile:
        document = self._document('"tests": [...]')
        self._unknown("", document, TOP_KEYS)
        config = self._object("config", document.get("config", {}))
        machine = self._machine("config", config, HubMachine())
        tests = document.get("tests")
        if not isinstance(tests, list) or not tests:
            self._refuse("tests", tests, "a list with at least one test", f"add {A_TEST}")
            tests = []
        not_run = [self._name(*each) for each in _numbered(tests) if _is_http(each[1])]
        read = [self._test(*each, machine) for each in _numbered(tests) if not _is_http(each[1])]
        if not_run and not read:
            remedy = "load-balancing endpoints are not emulated: test the worker's own HTTP server"
            self._refuse("tests", None, "at least one test with an input", remedy)
        self._warn_of_equal(test.name for test in read)
        self._raise_problems()
        return HubFile(tests=tuple(read), not_run=tuple(not_run), warnings=tuple(self._warnings))

    def test_input(self) -> HubFile:
        document = self._document('"input": {...}')
        self._unknown("", document, ("input",))
        given = self._input("input", document)
        self._raise_problems()
        test = HubTest(name=self._path.name, input=given)
        return HubFile(tests=(test,), warnings=tuple(self._warnings))

    def _document(self, example: str) -> Mapping[str, Any]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise EmulatorError(f"{self._path}: cannot be read as JSON: {error}") from error
        if not isinstance(document, dict):
            self._refuse("document", document, "an object", f"write {{{example}}}")
            self._raise_problems()
        return dict(document)

    def _test(self, key: str, test: object, machine: HubMachine) -> HubTest:
        if not isinstance(test, dict):
            self._refuse(key, test, "an object", f"write {A_TEST}")
            return HubTest(name=key, input={})
        self._unknown(key, test, TEST_KEYS)
        own = self._object(f"{key}.config", test.get("config", {}))
        return HubTest(
            name=self._name(key, test),
            input=self._input(f"{key}.input", test),
            timeout_ms=self._count(f"{key}.timeout", test.get("timeout"), "milliseconds"),
            machine=self._machine(f"{key}.config", own, machine),
        )

    def _name(self, key: str, test: Mapping[str, Any]) -> str:
        name = test.get("name")
        if isinstance(name, str) and name:
            return name
        self._warn(f"{key}.name", f"expected text, so the test is called {key}")
        return key

    def _input(self, key: str, holder: Mapping[str, Any]) -> Mapping[str, Any]:
        given = holder.get("input")
        if isinstance(given, dict):
            return given
        if "input" not in holder:
            meant = difflib.get_close_matches("input", holder, n=1)
            remedy = f"rename {meant[0]!r}" if meant else "the job's input is required"
            self._refuse(key, None, "an object", remedy)
        else:
            self._refuse(key, given, "an object", 'wrap it: {"value": ...}')
        return {}

    def _machine(self, key: str, config: Mapping[str, Any], base: HubMachine) -> HubMachine:
        self._unknown(key, config, CONFIG_KEYS)
        env = dict(self._env(f"{key}.env", config.get("env") or []))
        return HubMachine(
            gpu=self._gpu(f"{key}.gpuTypeId", config.get("gpuTypeId")) or base.gpu,
            gpu_count=self._count(f"{key}.gpuCount", config.get("gpuCount"), "GPUs")
            or base.gpu_count,
            env=tuple(sorted({**dict(base.env), **env}.items())),
        )

    def _gpu(self, key: str, given: object) -> str | None:
        if isinstance(given, list) and all(isinstance(each, str) for each in given):
            if len(given) > 1:
                self._warn(key, f"expected one GPU type; the tests run as on {given[0]!r}")
            given = given[0] if given else None
        if given is None or isinstance(given, str):
            return given or None
        self._refuse(key, given, "text", 'write a GPU ID such as "NVIDIA GeForce RTX 4090"')
        return None

    def _env(self, key: str, given: object) -> Iterator[tuple[str, str]]:
        if isinstance(given, dict):
            self._warn(key, 'expected a list of {"key": ..., "value": ...}; taken as such')
            given = [{"key": name, "value": value} for name, value in given.items()]
        if not isinstance(given, list):
            self._refuse(key, None, "a list", 'write [{"key": "NAME", "value": "text"}]')
            return
        for index, entry in enumerate(given):
            yield from self._variable(f"{key}[{index}]", entry)

    def _variable(self, key: str, entry: object) -> Iterator[tuple[str, str]]:
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            self._refuse(key, None, "an object with key and value", 'write {"key": ..., ...}')
            return
        if "value" not in entry and isinstance(entry.get("input"), dict):
            self._warn(key, "an input of hub.json; its default is taken")
            entry = {"key": entry["key"], "value": entry["input"].get("default", "")}
        self._unknown(key, entry, ENV_KEYS)
        value = entry.get("value")
        if isinstance(value, bool | int | float):
            value = json.dumps(value)
            self._warn(f"{key}.value", f"expected text; taken as {value!r}")
        if isinstance(value, str):
            yield entry["key"], value
        else:
            self._refuse(f"{key}.value", None, "text", "put the value in quotes")

    def _count(self, key: str, given: object, unit: str) -> int | None:
        if given is None:
            return None
        is_bool = isinstance(given, bool)
        if isinstance(given, int | float) and not is_bool and given >= 1 and given % 1 == 0:
            return int(given)
        self._refuse(key, given, f"a whole number of {unit}", "write at least 1, unquoted")
        return None

    def _object(self, key: str, given: object) -> Mapping[str, Any]:
        if isinstance(given, dict):
            return given
        self._refuse(key, given, "an object", "remove it, or write {...}")
        return {}

    def _unknown(self, key: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
        for name in given.keys() - set(known):
            meant = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {meant[0]}?" if meant and meant[0] not in given else ""
            self._warn(f"{key}.{name}".removeprefix("."), f"not in the Hub's guide, ignored{hint}")

    def _warn_of_equal(self, names: Iterator[str]) -> None:
        listed = list(names)
        for name in sorted({name for name in listed if listed.count(name) > 1}):
            self._warn("tests", f"{listed.count(name)} tests are called {name!r}; all of them run")

    def _warn(self, key: str, text: str) -> None:
        self._warnings.append(f"{self._path}: {key}: {text}")

    def _refuse(self, key: str, value: object, expected: str, remedy: str) -> None:
        shown = value if isinstance(value, str | int | float) else None
        problem = InvalidConfiguration(f"{self._path}: {key}", shown, expected, remedy)
        self._problems.append(problem)

    def _raise_problems(self) -> None:
        if self._problems:
            raise ConfigurationProblems(self._problems)


def _numbered(tests: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"tests[{index}]", test) for index, test in enumerate(tests))


def _is_http(test: object) -> bool:
    return isinstance(test, dict) and "input" not in test and not test.keys().isdisjoint(HTTP_KEYS)

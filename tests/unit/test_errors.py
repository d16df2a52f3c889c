"""The error tree: codes, faults, and the drawing of it in the docstring."""

import inspect
import json
import re

import pytest

from pixpod import errors
from pixpod.contract.payload import render_error
from pixpod.errors import Fault, InvalidInput, PayloadError, Problem, WorkerError


def subclasses(of):
    return [sub for each in of.__subclasses__() for sub in (each, *subclasses(each))]


ALL = [error for error in subclasses(WorkerError) if error.__module__ == errors.__name__]
CONCRETE = [error for error in ALL if error is not PayloadError]
HOSTILE = 'quote " brace {0} %s newline \n caf\u00e9 \u8d64'
DRAWN = re.compile(
    r"^ *[\u2502 ]*[\u251c\u2514]\u2500\u2500 (?P<name>\w+)"
    r"(?: +(?P<code>\w+) +(?P<fault>\w+)(?P<leaves>, worker is replaced)?)?$",
    re.MULTILINE,
)


def make(error):
    if issubclass(error, PayloadError):
        return error([Problem(field="prompt", value=None, accepted=HOSTILE)])
    return error(HOSTILE)


def test_codes_are_unique_and_of_the_wire():
    codes = [error.code for error in CONCRETE]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch("[a-z_]+", code) for code in codes)


@pytest.mark.parametrize("error", CONCRETE)
def test_error_says_its_code_its_fault_and_when_it_happens(error):
    assert "code" in vars(error)
    assert isinstance(error.fault, Fault)
    assert vars(error)["__doc__"].endswith(".")


@pytest.mark.parametrize("error", CONCRETE)
def test_text_starts_with_the_code_and_is_json_safe(error):
    text = str(make(error))
    assert text.startswith(f"{error.code}: ")
    assert json.loads(json.dumps(render_error(make(error)), allow_nan=False))["error"] == text


@pytest.mark.parametrize("error", CONCRETE)
def test_only_a_fault_of_the_host_may_replace_the_worker(error):
    assert not error.refresh_worker or error.fault is Fault.HOST
    assert "refresh_worker" not in render_error(make(error)), "the worker decides"


def test_drawing_has_each_error_with_its_code_and_fault():
    drawn = {found["name"]: found for found in DRAWN.finditer(errors.__doc__)}
    assert drawn.keys() == {error.__name__ for error in ALL}
    for error in CONCRETE:
        line = drawn[error.__name__]
        assert (line["code"], line["fault"]) == (error.code, error.fault)
        assert (line["leaves"] is not None) == error.refresh_worker


def test_drawing_indents_a_subclass_below_its_base():
    lines = errors.__doc__.splitlines()
    depth = {name: line.index(name) for line in lines for name in re.findall(r"\u2500 (\w+)", line)}
    for error in ALL:
        (base,) = error.__bases__
        assert depth[error.__name__] == depth.get(base.__name__, 4) + 4


def test_text_of_a_payload_error_is_json():
    problems = [Problem(field="seed", value=-1, accepted="at least 0", hint=None)]
    error = InvalidInput(problems)
    assert error.problems == tuple(problems)
    assert json.loads(str(error).removeprefix("invalid_input: ")) == {
        "problems": [{"field": "seed", "value": -1, "accepted": "at least 0", "hint": None}]
    }


def test_no_class_is_called_exception():
    classes = inspect.getmembers(errors, inspect.isclass)
    assert not [name for name, _ in classes if name.endswith("Exception")]

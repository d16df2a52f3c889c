"""A tests.json of RunPod's Hub, or a test_input.json: what runs, what is a warning or refused."""

import json
from pathlib import Path

import pytest

from runpod_emulator.command_line.hub_file import (
    HubMachine,
    find_tests,
    read_hub_tests,
    read_test_input,
)
from runpod_emulator.errors import ConfigurationProblems, EmulatorError

ROOT = Path(__file__).resolve().parents[3]
HUB_FILES = ROOT / "tests" / "support" / "hub_files"
GPU = "NVIDIA GeForce RTX 4090"
ONE = {"name": "a", "input": {"x": 1}}


@pytest.fixture
def write(tmp_path):
    def write(document, name="tests.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    return write


@pytest.fixture
def read(write):
    return lambda document: read_hub_tests(write(document))


@pytest.fixture
def warnings(read, tmp_path):
    def warnings(document):
        prefix = f"{tmp_path / 'tests.json'}: "
        found = read(document).warnings
        assert all(warning.startswith(prefix) for warning in found)
        return sorted(warning.removeprefix(prefix) for warning in found)

    return warnings


@pytest.fixture
def problems(write):
    def problems(document, read=read_hub_tests):
        path = write(document)
        with pytest.raises(ConfigurationProblems) as caught:
            read(path)
        found = {each.field: str(each) for each in caught.value.problems}
        assert all(field.startswith(f"{path}: ") for field in found)
        assert all(": expected " in text and text.endswith(")") for text in found.values())
        return {field.removeprefix(f"{path}: "): text for field, text in found.items()}

    return problems


def hub_file(name):
    (path,) = HUB_FILES.glob(f"*_{name}.json")
    return read_hub_tests(path)


def test_template_of_the_guide_is_read_whole_and_without_a_warning():
    (test,) = (file := hub_file("guide")).tests
    assert file.warnings == ()
    assert (test.name, test.timeout_ms) == ("test_case_name", 10_000)
    assert test.input == {"param1": "value1", "param2": "value2"}
    env = (("TEST_ENV_VAR", "test_value"),)
    assert test.machine == HubMachine(gpu=GPU, gpu_count=1, env=env)


@pytest.mark.parametrize("name", ["cpu", "two_gpus", "environment", "minimal", "any_json"])
def test_file_after_the_guide_is_no_warning(name):
    file = hub_file(name)
    assert file.tests
    assert (file.warnings, file.not_run) == ((), ())


def test_configuration_of_a_test_is_laid_over_that_of_the_file(read):
    config = {"gpuTypeId": GPU, "gpuCount": 1, "env": [{"key": "A", "value": "1"}]}
    own = {"gpuCount": 2, "env": [{"key": "B", "value": "2"}]}
    first, second = read(
        {"tests": [ONE, {**ONE, "name": "b", "config": own}], "config": config}
    ).tests
    assert first.machine == HubMachine(gpu=GPU, gpu_count=1, env=(("A", "1"),))
    assert second.machine == HubMachine(gpu=GPU, gpu_count=2, env=(("A", "1"), ("B", "2")))


def test_tests_of_equal_configuration_share_a_machine():
    first, second, third = (test.machine for test in hub_file("config_per_test").tests)
    assert first == third != second


def test_unknown_keys_are_warnings(warnings):
    document = {
        "tests": [{**ONE, "description": "x"}],
        "config": {"gpuTypeID": GPU, "containerDiskInGb": 20},
        "test": [],
    }
    assert warnings(document) == [
        "config.containerDiskInGb: not in the Hub's guide, ignored",
        "config.gpuTypeID: not in the Hub's guide, ignored; did you mean gpuTypeId?",
        "test: not in the Hub's guide, ignored",
        "tests[0].description: not in the Hub's guide, ignored",
    ]


def test_first_of_several_gpus_is_taken():
    file = hub_file("list_of_gpus")
    assert file.tests[0].machine.gpu == GPU
    assert any("expected one GPU type" in warning for warning in file.warnings)


def test_equal_and_missing_names_are_warnings_and_run(read, warnings):
    document = {"tests": [ONE, ONE, {"input": {}}]}
    assert [test.name for test in read(document).tests] == ["a", "a", "tests[2]"]
    assert warnings(document) == [
        "tests: 2 tests are called 'a'; all of them run",
        "tests[2].name: expected text, so the test is called tests[2]",
    ]


def test_tests_of_a_load_balancing_endpoint_are_left_out():
    file = hub_file("load_balancer")
    assert [test.name for test in file.tests] == ["job"]
    assert file.not_run == ("Health check",)


def test_variables_in_other_forms_are_taken_as_text(read):
    (test,) = hub_file("environment_of_hub_json").tests
    assert test.machine.env == (("FAST", "true"), ("MODEL", "tiny"), ("STEPS", "4"))
    (test,) = read({"tests": [ONE], "config": {"env": {"A": "b"}}}).tests
    assert test.machine.env == (("A", "b"),)


def test_whole_numbers_may_be_written_with_a_point(read):
    (test,) = read({"tests": [{**ONE, "timeout": 10000.0}]}).tests
    assert test.timeout_ms == 10_000
    assert type(test.timeout_ms) is int


def test_timeouts_can_be_taken_out(read):
    file = read({"tests": [{**ONE, "timeout": 1000}]})
    assert file.without_timeouts().tests[0].timeout_ms is None
    assert file.tests[0].timeout_ms == 1000


def test_all_refusals_come_at_once_with_their_key_and_a_remedy(problems):
    found = problems(
        {
            "tests": [{"name": "a", "inputs": {}}, {"name": "b", "input": []}, "c"],
            "config": {"gpuTypeId": 4, "env": [{"key": "A", "value": None}, "B"]},
        }
    )
    assert found.keys() == {
        "tests[0].input",
        "tests[1].input",
        "tests[2]",
        "config.gpuTypeId",
        "config.env[0].value",
        "config.env[1]",
    }
    assert found["tests[0].input"].endswith("expected an object (rename 'inputs')")


@pytest.mark.parametrize("timeout", [0, -1, 1.5, True, "9", float("inf"), float("nan")])
def test_timeout_is_a_whole_number_of_milliseconds(problems, timeout):
    assert problems({"tests": [{**ONE, "timeout": timeout}]}).keys() == {"tests[0].timeout"}


@pytest.mark.parametrize("tests", [[], None, {}, "x"])
def test_no_tests_at_all_are_refused(problems, tests):
    assert problems({"tests": tests})["tests"].endswith('(add {"name": "...", "input": {...}})')


def test_only_tests_of_a_load_balancing_endpoint_are_refused(problems):
    found = problems({"tests": [{"name": "Health", "method": "GET", "path": "/ping"}]})
    assert "load-balancing endpoints are not emulated" in found["tests"]


@pytest.mark.parametrize("config", [[], "x", None, 3])
@pytest.mark.parametrize("place", ["file", "test"])
def test_configuration_that_is_no_object_is_refused(problems, config, place):
    in_file = {"tests": [ONE], "config": config}
    in_test = {"tests": [{**ONE, "config": config}]}
    key = problems(in_file if place == "file" else in_test).keys()
    assert key == {"config" if place == "file" else "tests[0].config"}


@pytest.mark.parametrize("document", [[], [ONE], "x", None, 3])
def test_file_that_is_no_object_is_refused(problems, document):
    assert 'write {"tests": [...]}' in problems(document)["document"]


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[" * 100_000])
def test_file_that_is_no_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "tests.json"
    path.write_bytes(content)
    with pytest.raises(EmulatorError, match=r"tests\.json: cannot be read as JSON"):
        read_hub_tests(path)


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(EmulatorError, match=r"tests\.json"):
        read_hub_tests(tmp_path / "tests.json")


def test_values_of_variables_are_never_shown(problems, read):
    variables = [{"key": "TOKEN", "value": ["4711"]}]
    assert "4711" not in str(problems({"tests": [ONE], "config": {"env": variables}}))
    file = read({"tests": [ONE], "config": {"env": [{"key": "TOKEN", "value": "4711"}]}})
    assert "4711" not in repr(file)


def test_tests_of_the_project_come_before_its_test_input(write, tmp_path):
    write({"input": {"prompt": "hello"}}, "test_input.json")
    (test,) = find_tests(tmp_path).tests
    assert (test.name, test.input) == ("test_input.json", {"prompt": "hello"})
    write({"tests": [ONE]}, ".runpod/tests.json")
    assert [test.name for test in find_tests(tmp_path).tests] == ["a"]


def test_project_without_either_is_refused_with_both_names(tmp_path):
    with pytest.raises(EmulatorError, match=r"\.runpod/tests\.json or test_input\.json in "):
        find_tests(tmp_path)


def test_test_input_without_input_is_refused(problems):
    found = problems({"prompt": "hello"}, read_test_input)
    assert found["input"].endswith("(the job's input is required)")


def test_tests_of_this_repository_fit():
    file = read_hub_tests(ROOT / ".runpod" / "tests.json")
    assert {test.input["model"] for test in file.tests} == {"flux-tiny", "sdxl-tiny", "sd15-tiny"}
    assert file.warnings == ()

"""A tests.json of RunPod's Hub: what it may hold, and how results are told."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from runpod_emulator.command_line.hub_tests import (
    MAX_ERROR_CHARACTERS,
    HubResult,
    read_hub_tests,
    report_of,
)
from runpod_emulator.errors import ConfigurationProblems, EmulatorError
from runpod_emulator.jobs.job import JobStatus

ROOT = Path(__file__).resolve().parents[3]

TEMPLATE = {
    "tests": [
        {"name": "first", "input": {"param1": "value1"}, "timeout": 10000},
        {"name": "second", "input": {}},
    ],
    "config": {
        "gpuTypeId": "NVIDIA GeForce RTX 4090",
        "gpuCount": 2,
        "env": [{"key": "MODE", "value": "fast"}],
        "allowedCudaVersions": ["12.7", "12.6"],
    },
}
"""Like the one in the Hub's publishing guide."""


@pytest.fixture
def read(tmp_path):
    def read(document):
        path = tmp_path / "tests.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        return read_hub_tests(path)

    return read


@pytest.fixture
def problems(read):
    def problems(document):
        with pytest.raises(ConfigurationProblems) as caught:
            read(document)
        return {problem.field: str(problem) for problem in caught.value.problems}

    return problems


def result(**given):
    usual = HubResult(name="first", http_status=200, status=JobStatus.COMPLETED, duration_s=1.25)
    return replace(usual, **given)


def test_template_of_the_hub_is_read(read):
    file = read(TEMPLATE)
    assert [test.name for test in file.tests] == ["first", "second"]
    assert file.tests[0].input == {"param1": "value1"}
    assert [test.timeout_s for test in file.tests] == [10.0, None]
    assert (file.config.gpuTypeId, file.config.gpuCount) == ("NVIDIA GeForce RTX 4090", 2)
    assert file.env == {"MODE": "fast"}


def test_configuration_may_be_left_out_or_be_that_of_a_cpu(read):
    assert read({"tests": TEMPLATE["tests"]}).env == {}
    assert read({**TEMPLATE, "config": {"cpuFlavor": "cpu3c"}}).config.gpuTypeId is None


def test_timeouts_can_be_taken_out(read):
    file = read(TEMPLATE)
    assert [test.timeout_s for test in file.without_timeouts().tests] == [None, None]
    assert file.tests[0].timeout_s == 10.0


def test_all_problems_are_told_at_once(problems):
    found = problems(
        {
            "tests": [{"name": "a", "inputs": {}}, {"name": "", "input": [], "timeout": "9"}],
            "config": {"gpuTypeID": "x", "env": [{"key": "A", "value": 1}]},
            "test": [],
        }
    )
    assert found.keys() == {
        "tests[0].input",
        "tests[0].inputs",
        "tests[1].name",
        "tests[1].input",
        "tests[1].timeout",
        "config.gpuTypeID",
        "config.env[0].value",
        "test",
    }
    assert found["tests[0].inputs"] == ("tests[0].inputs: expected input (there is no 'inputs')")
    assert found["config.env[0].value"] == "config.env[0].value: expected text"


@pytest.mark.parametrize("timeout", [0, -1, 1.5, True])
def test_timeout_is_a_whole_number_of_milliseconds(problems, timeout):
    tests = [{"name": "a", "input": {}, "timeout": timeout}]
    assert problems({"tests": tests}).keys() == {"tests[0].timeout"}


def test_no_tests_at_all_are_a_problem(problems):
    assert problems({"tests": []})["tests"] == "tests: expected a list that is not empty"


def test_two_tests_of_one_name_are_a_problem(problems):
    test = {"name": "a", "input": {}}
    assert "unlike a" in problems({"tests": [test, test]})["tests"]


@pytest.mark.parametrize("document", [[], "x", None, 3])
def test_file_that_is_no_object_is_a_problem(problems, document):
    assert "a table" in problems(document)["document"]


@pytest.mark.parametrize("content", [b"{", b"", b"\xff"])
def test_file_that_is_no_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "tests.json"
    path.write_bytes(content)
    with pytest.raises(EmulatorError, match=r"tests\.json: cannot be read as JSON"):
        read_hub_tests(path)


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(EmulatorError, match=r"tests\.json"):
        read_hub_tests(tmp_path / "tests.json")


def test_tests_of_this_repository_fit():
    file = read_hub_tests(ROOT / ".runpod" / "tests.json")
    assert {test.input["model"] for test in file.tests} == {"flux-tiny", "sdxl-tiny", "sd15-tiny"}


@pytest.mark.parametrize(
    ("given", "has_passed"),
    [
        ({}, True),
        ({"status": JobStatus.FAILED}, False),
        ({"status": JobStatus.IN_QUEUE}, False),
        ({"status": None}, False),
        ({"http_status": 400}, False),
        ({"http_status": None}, False),
    ],
)
def test_answer_of_200_and_a_completed_job_pass(given, has_passed):
    assert result(**given).has_passed is has_passed


def test_report_is_a_table_with_what_went_wrong_below():
    report = report_of(
        [
            result(),
            result(name="much longer", status=JobStatus.FAILED, duration_s=12, error="one\ntwo\n"),
            result(name="x", status=None, http_status=400, error="body: no"),
            result(name="y", status=None, http_status=None),
        ]
    )
    assert report == (
        "      test         status     seconds  error\n"
        "ok    first        COMPLETED      1.2\n"
        "FAIL  much longer  FAILED        12.0  one\n"
        "FAIL  x            HTTP 400       1.2  body: no\n"
        "FAIL  y            no answer      1.2\n"
        "\n"
        "much longer:\n"
        "    one\n"
        "    two\n"
        "\n"
        "1 of 4 passed\n"
    )


def test_long_error_is_cut_in_the_table_and_whole_below():
    error = "e" * (MAX_ERROR_CHARACTERS + 1)
    table, details, _ = report_of([result(status=JobStatus.FAILED, error=error)]).split("\n\n")
    assert error not in table
    assert error in details

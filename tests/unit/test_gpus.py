"""The table of GPUs is complete, and any GPU finds its row."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixpod.errors import DeviceUnavailable
from pixpod.families import Precision
from pixpod.gpus import find_gpu, find_gpu_class, load_gpu_classes, load_gpus

CLASSES = {gpu_class.name: gpu_class for gpu_class in load_gpu_classes()}


@pytest.mark.parametrize("gpu_class", CLASSES.values(), ids=CLASSES)
def test_row_has_a_source_and_chooses_what_the_gpu_can(gpu_class):
    assert len(gpu_class.source) > 40
    assert gpu_class.attention in ("native", "_native_cudnn")
    assert not gpu_class.eager.is_8_bit or gpu_class.float8_since
    for precision in (gpu_class.compiled, gpu_class.eager):
        assert precision is not Precision.FLOAT8_DYNAMIC or gpu_class.float8_since
    assert (gpu_class.float8_since is not None) == (gpu_class.capability >= (8, 9))


def test_rows_are_of_different_capabilities_the_oldest_first():
    capabilities = [gpu_class.capability for gpu_class in load_gpu_classes()]
    assert capabilities == sorted(set(capabilities))


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.11.0", False), ("2.12.0+cu130", True), ("2.13.1.dev20260101", True), ("3.0.0", True)],
)
def test_ada_needs_a_torch_that_minds_the_stream(version, expected):
    assert find_gpu_class((8, 9)).has_float8(version) is expected


def test_gpu_without_float8_has_it_with_no_torch():
    assert not find_gpu_class((8, 6)).has_float8("9.0.0")


@pytest.mark.parametrize(
    ("capability", "treated_as"),
    [((8, 7), (8, 6)), ((10, 3), (10, 0)), ((12, 1), (12, 0)), ((13, 0), (12, 0))],
)
def test_unknown_gpu_is_treated_as_the_next_older_and_says_so(capability, treated_as):
    gpu_class, older = find_gpu_class(capability), find_gpu_class(treated_as)
    assert (gpu_class.name, gpu_class.compiled) == (older.name, older.compiled)
    assert gpu_class.capability == capability
    assert f"{capability[0]}.{capability[1]} is not in the table" in gpu_class.cautions[-1]
    assert not any("not in the table" in caution for caution in older.cautions)


@given(st.tuples(st.integers(0, 20), st.integers(0, 9)))
def test_every_gpu_has_a_row_that_is_not_newer_or_is_refused(capability):
    if capability < (7, 5):
        with pytest.raises(DeviceUnavailable, match=r"expected 7\.5 or higher"):
            find_gpu_class(capability)
        return
    names = {
        gpu_class.name for gpu_class in load_gpu_classes() if gpu_class.capability <= capability
    }
    assert find_gpu_class(capability).name in names


@pytest.mark.parametrize("known", load_gpus(), ids=lambda known: known.name)
def test_gpu_of_the_table_has_a_class_and_is_found_by_its_name(known):
    assert (
        find_gpu_class(known.capability).cautions == find_gpu_class(known.capability).cautions[:1]
    )
    assert known.capability in {gpu_class.capability for gpu_class in load_gpu_classes()}
    assert 10 < known.memory_gib < 300
    assert find_gpu(known.name) == known


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("nvidia l40s", "L40S"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA RTX 6000 Ada Generation", "6000 Ada"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA RTX A4000", "A4000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000"),
    ],
)
def test_gpu_is_known_by_what_drivers_and_people_call_it(text, expected):
    gpu = find_gpu(text)
    assert gpu is not None and gpu.name == expected


@pytest.mark.parametrize("text", ["", " ", "cpu", "Voodoo 2", "NVIDIA GH200 480GB", "A1000"])
def test_unknown_name_is_no_gpu(text):
    assert find_gpu(text) is None

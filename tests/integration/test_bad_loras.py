"""LoRA files that would not do what they say: each is refused, and the next job is served."""

import json

import pytest
from support.lora_files import BAD_LORAS, FLUX_LAYER, SDXL_LAYER, file_of, pair
from support.lora_worker import lora_desk
from support.tiny_models import WITH_EXTRAS

from pixpod.engine.execution.conditions import LoraCondition

PROMPT = "a red circle on a blue background"
LAYERS = {"flux-tiny": FLUX_LAYER, "sdxl-tiny": SDXL_LAYER, "sd15-tiny": SDXL_LAYER}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    desk = lora_desk(tmp_path_factory.mktemp("bad"), ",".join(WITH_EXTRAS), PIXPOD_LORA_DIR="")
    yield desk
    desk.worker.stop()


@pytest.fixture(scope="module")
def widths(desk):
    """The width of the layer that good files are for, by model."""
    return {name: _width(desk, name) for name in WITH_EXTRAS}


def _width(desk, name):
    denoiser = desk.worker.engine.loader.load(name).result().loaded.denoiser
    return denoiser.get_submodule(LAYERS[name].partition(".")[2]).in_features


def problems_of(reply):
    code, _, text = reply["error"].partition(": ")
    return code, json.loads(text)["problems"]


def fault(reply, bad):
    """Return what is wrong with the refusal of a file, or None."""
    if not reply.get("error", "").startswith("weights_refused: "):
        return reply.get("error", "served")
    _, problems = problems_of(reply)
    said = f"{problems[0]['accepted']} {problems[0]['value']}"
    is_right = [each["field"] for each in problems] == ["loras[1].source"] and bad.reason in said
    return None if is_right else str(problems)


def test_table_has_many_files_and_each_once():
    assert len(BAD_LORAS) >= 30
    assert len({bad.id for bad in BAD_LORAS}) == len(BAD_LORAS)


def test_each_is_refused_at_its_place_with_the_reason_and_fails_its_own_job_only(desk, widths):
    for name in WITH_EXTRAS:
        desk.files[f"good-{name}"] = file_of(pair(LAYERS[name], (widths[name],) * 2))
    jobs = []
    for number, bad in enumerate(BAD_LORAS):
        desk.files[f"bad-{number}"] = bad.build(widths[bad.model])
        loras = [f"good-{bad.model}", f"bad-{number}"]
        jobs.append(
            {
                "model": bad.model,
                "prompt": PROMPT,
                "loras": [{"source": desk.url(each)} for each in loras],
            }
        )
    good = {"model": "sdxl-tiny", "prompt": PROMPT, "num_inference_steps": 1}
    good["loras"] = [{"source": desk.url("good-sdxl-tiny")}]
    *refused, served = desk.replies([*jobs, good])
    wrong = {bad.id: fault(reply, bad) for bad, reply in zip(BAD_LORAS, refused, strict=True)}
    assert {id: text for id, text in wrong.items() if text} == {}
    assert len(served["images"]) == 1


def test_same_file_under_two_urls_is_refused(desk, widths):
    data = file_of(pair(SDXL_LAYER, (widths["sdxl-tiny"],) * 2, seed=3))
    desk.files |= {"one": data, "two": data}
    loras = [{"source": desk.url("one")}, {"source": desk.url("two")}]
    code, problems = problems_of(desk.reply(model="sdxl-tiny", prompt=PROMPT, loras=loras))
    assert (code, problems[0]["field"]) == ("weights_refused", "loras[1].source")


def test_ranks_that_are_too_high_together_are_refused(desk, widths):
    for seed in (4, 5):
        tensors = pair(SDXL_LAYER, (widths["sdxl-tiny"],) * 2, 200, seed=seed)
        desk.files[f"rank-{seed}"] = file_of(tensors)
    loras = [{"source": desk.url(f"rank-{seed}")} for seed in (4, 5)]
    code, problems = problems_of(desk.reply(model="sdxl-tiny", prompt=PROMPT, loras=loras))
    assert (code, problems[0]["field"], problems[0]["value"]) == ("weights_refused", "loras", 400)


def test_several_bad_files_are_refused_at_once(desk):
    desk.files |= {"page": b"<html>", "dora": BAD_LORAS[8].build(4)}
    loras = [{"source": desk.url(name)} for name in ("page", "missing", "dora")]
    code, problems = problems_of(desk.reply(model="sdxl-tiny", prompt=PROMPT, loras=loras))
    assert code == "fetch_failed"
    assert [each["field"] for each in problems] == [f"loras[{n}].source" for n in range(3)]


@pytest.mark.parametrize("bad", ["DoRA", "NaN", "cut"])
def test_broken_lora_of_the_deployment_is_its_fault(desk, widths, tmp_path, bad):
    (found,) = (each for each in BAD_LORAS if each.id == bad)
    (tmp_path / "own.safetensors").write_bytes(found.build(widths[found.model]))
    own = lora_desk(tmp_path, "sdxl-tiny", PIXPOD_LORA_DIR=str(tmp_path))
    try:
        reply = own.reply(model="sdxl-tiny", prompt=PROMPT, loras=[{"source": "own"}])
    finally:
        own.worker.stop()
    assert reply["error"].startswith("adapter_unusable: LoRA own: expected ")


def test_file_that_changes_on_the_disk_is_not_used(desk, widths, tmp_path):
    tensors = pair(SDXL_LAYER, (widths["sdxl-tiny"],) * 2, seed=9)
    desk.files["changed"] = file_of(tensors)
    ask = {"model": "sdxl-tiny", "prompt": PROMPT, "num_inference_steps": 1}
    ask["loras"] = [{"source": desk.url("changed")}]
    (used,) = desk.reply(**ask)["adapters"]
    path = next(tmp_path.parent.parent.rglob(f"{used['sha256']}.safetensors"))
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    conditions = desk.worker.engine.loader._variants.result()._runner._conditions
    (condition,) = (each for each in conditions if isinstance(each, LoraCondition))
    condition._store._adapters.clear()
    assert desk.reply(**ask)["error"].startswith("weights_unreadable: LoRA changed: ")
    assert not path.exists()
    assert desk.reply(**ask)["adapters"] == [used | {"cached": False}]

"""UNets obey their prompts with every scheduler that their family offers, as well as with Euler."""

import json

import pytest
from support.tiny_models import Desk, build_tiny_worker, share, trained_scenes

from pixpod.catalog import load_catalog
from pixpod.families import SchedulerSpec
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod_tools.tiny.unet import build_scheduler

MODELS = ("sdxl-tiny", "sd15-tiny")
MAX_LOSS = 0.10


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    worker = build_tiny_worker(tmp_path_factory.mktemp("out"))
    worker.start()
    yield Desk(worker)
    worker.stop()


def distinct_schedulers(model):
    """Names of the model's schedulers: those of the same scheduler together, Euler's first."""
    names_of: list[tuple[SchedulerSpec, list[str]]] = []
    for name, spec in load_catalog()[model].family.schedulers.items():
        for known, names in names_of:
            if known == spec:
                names.append(name)
                break
        else:
            names_of.append((spec, [name]))
    assert names_of[0][1] == ["EulerDiscreteScheduler", "Euler"]
    return [names for _, names in names_of]


def assert_all_obey(desk, model, num_prompts):
    scenes = trained_scenes(num_prompts)
    shares = {
        ", ".join(names): share(
            [verdict.is_right for verdict in desk.judge(model, scenes, scheduler=names[-1])]
        )
        for names in distinct_schedulers(model)
    }
    print(f"\n{model}, {num_prompts} prompts")
    for names, found in shares.items():
        print(f"{found:7.1%}  {names}")
    least = shares["EulerDiscreteScheduler, Euler"] - MAX_LOSS
    assert {names: found for names, found in shares.items() if found < least} == {}


@pytest.mark.parametrize("model", MODELS)
def test_every_scheduler_obeys_8_prompts(desk, model):
    assert_all_obey(desk, model, 8)


@pytest.mark.acceptance
@pytest.mark.parametrize("model", MODELS)
def test_every_scheduler_obeys_56_prompts(desk, model):
    assert_all_obey(desk, model, 56)


@pytest.mark.parametrize("model", MODELS)
def test_shipped_config_is_that_of_the_training(model, tmp_path):
    build_scheduler().save_config(tmp_path)
    name = "scheduler_config.json"
    shipped = SOURCE_WEIGHTS_DIR / "tiny" / model / "scheduler" / name
    assert json.loads(shipped.read_text()) == json.loads((tmp_path / name).read_text())

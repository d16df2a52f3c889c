"""Components that models have in common are kept once. Nothing here imports torch."""

import json

import pytest
from support.weights_directories import CATALOG, WEIGHTS_NAME, describe, files_of, write_files

from pixpod.engine.component_key import ComponentKey
from pixpod.engine.memory.needs import need_of
from pixpod.engine.memory.residency import make_plan
from pixpod.engine.memory.sharing import Sharing
from pixpod.engine.precision.precision import QuantizationPlan
from pixpod.errors import WeightsUnreadable
from pixpod.families import Precision
from pixpod.weights.manifest import MANIFEST, ManifestEntry, render_manifest
from pixpod.weights.sources import BakedSource

DEV, SCHNELL = CATALOG["flux-dev"], CATALOG["flux-schnell"]
FLOAT8 = QuantizationPlan(precision=Precision.FLOAT8_DYNAMIC)
SHARED = ("text_encoder", "text_encoder_2", "vae")


@pytest.fixture
def store(tmp_path):
    """Lists two models; what the second changes of the first's files is given by path."""

    def make(**changed):
        common = files_of(DEV)
        own = {f"transformer/{WEIGHTS_NAME}": b"schnell's own"}
        files = {DEV.name: common, SCHNELL.name: {**common, **own, **changed}}
        entries = {}
        for name, data in files.items():
            write_files(tmp_path / name, data)
            listed = tuple(describe(path, text) for path, text in data.items())
            entries[name] = ManifestEntry(name=name, path=name, revision="1", files=listed)
        (tmp_path / MANIFEST).write_text(render_manifest(entries), encoding="utf-8")
        return BakedSource(tmp_path)

    return make


def keys_of(source, plan=FLOAT8, other=FLOAT8):
    sharing = Sharing()
    first = sharing.keys_of(DEV, plan, source.find(DEV))
    return first, sharing.keys_of(SCHNELL, other, source.find(SCHNELL))


def test_equal_files_are_one_component_and_denoisers_never(store):
    dev, schnell = keys_of(store())
    assert {name for name in dev if dev[name] == schnell[name]} == set(SHARED)
    assert schnell["vae"] == ComponentKey(model="flux-dev", component="vae")
    assert schnell["transformer"].model == "flux-schnell"


def test_denoiser_is_a_models_own_even_if_another_has_the_same_bytes(store):
    """It may run in another precision there, and be compiled."""
    path = f"transformer/{WEIGHTS_NAME}"
    dev, schnell = keys_of(store(**{path: files_of(DEV)[path]}))
    assert dev["transformer"] != schnell["transformer"]
    assert dev["vae"] == schnell["vae"]


def test_origin_in_a_config_makes_no_difference(store):
    remark = {"_name_or_path": "elsewhere", "transformers_version": "4.43"}
    dev, schnell = keys_of(store(**{"text_encoder_2/config.json": json.dumps(remark).encode()}))
    assert dev["text_encoder_2"] == schnell["text_encoder_2"]


@pytest.mark.parametrize("path", [f"vae/{WEIGHTS_NAME}", "vae/config.json", "model_index.json"])
def test_other_bytes_settings_or_classes_are_another_component(store, path):
    index = {name: ["diffusers", "Other"] for name in DEV.family.component_names}
    changed = {
        f"vae/{WEIGHTS_NAME}": b"tuned",
        "vae/config.json": b'{"scaling_factor": 0.2}',
        "model_index.json": json.dumps({"_class_name": "FluxPipeline", **index}).encode(),
    }
    dev, schnell = keys_of(store(**{path: changed[path]}))
    assert schnell["vae"] == ComponentKey(model="flux-schnell", component="vae")
    assert (dev["text_encoder"] == schnell["text_encoder"]) == (path != "model_index.json")


def test_other_precision_is_another_component(store):
    source = store()
    dev, schnell = keys_of(source, other=QuantizationPlan(precision=Precision.FLOAT32))
    assert not {*dev.values()} & {*schnell.values()}
    dev, schnell = keys_of(source, other=QuantizationPlan(precision=Precision.BFLOAT16))
    assert dev["vae"] == schnell["vae"]
    dev, schnell = keys_of(
        source, other=QuantizationPlan(precision=FLOAT8.precision, t5=Precision.FLOAT8_DYNAMIC)
    )
    assert [name for name in SHARED if dev[name] != schnell[name]] == ["text_encoder_2"]


def test_without_a_manifest_or_weights_nothing_is_known(store, tmp_path):
    store()
    entries = {
        name: ManifestEntry(name=name, path=name, revision="1") for name in (DEV.name, SCHNELL.name)
    }
    (tmp_path / MANIFEST).write_text(render_manifest(entries), encoding="utf-8")
    dev, schnell = keys_of(BakedSource(tmp_path))
    assert not {*dev.values()} & {*schnell.values()}
    assert Sharing().keys_of(DEV, FLOAT8, None) == dev


def test_broken_config_is_the_hosts(store, tmp_path):
    weights = store().find(DEV)
    (tmp_path / "flux-dev/vae/config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(WeightsUnreadable, match="flux-dev/vae: its configuration is broken"):
        Sharing().keys_of(DEV, FLOAT8, weights)


def test_plan_counts_what_is_shared_once(store):
    source, sharing = store(), Sharing()
    needs = []
    for spec in (DEV, SCHNELL):
        weights = source.find(spec)
        keys = sharing.keys_of(spec, FLOAT8, weights)
        needs.append(need_of(spec, FLOAT8, weights, keys))
    plan = make_plan(needs, None)
    apart = [need_of(spec, FLOAT8, source.find(spec)) for spec in (DEV, SCHNELL)]
    shared = sum(size for key, size in needs[0].sizes.items() if key.component in SHARED)
    total = sum(make_plan(apart, None).resident.values())
    assert sum(plan.resident.values()) == total - shared

"""Extras of the catalog: the shipped ones are coherent, and a broken entry is named."""

import pytest
from support.factories import CATALOG, EXTRAS_FILE, OFFERED_EXTRAS, SHIPPED_ADAPTER, make_settings

from pixpod.bootstrap import build_worker
from pixpod.catalog import load_catalog
from pixpod.errors import InvalidSettings
from pixpod.extras import ExtraKind, check_names, choose_extras, extras_for, load_extras

ENTRY = """
[extras.mine]
kind = "controlnet"
family = "sdxl"
types = ["pose", "canny"]
licence = "Apache-2.0"
gib_16 = 2.33
repository = "someone/controlnet"
revision = "0123456789abcdef0123456789abcdef01234567"
"""


@pytest.fixture
def load(tmp_path):
    def load_text(text):
        path = tmp_path / "models.toml"
        path.write_text(text, encoding="utf-8")
        return load_extras(path)

    return load_text


def test_builtin_extras_fit_a_model_and_have_names_of_their_own():
    extras, models = load_extras(), load_catalog()
    check_names(extras, models)
    fitting = {extra.name for spec in models.values() for extra in extras_for(spec, extras)}
    assert fitting == extras.keys()
    for extra in extras.values():
        assert set(extra.models) <= models.keys()


def test_extra_of_a_file_fits_all_models_of_its_family(load):
    mine = load(ENTRY)["mine"]
    models = load_catalog()
    fitting = [name for name, spec in models.items() if mine.fits(spec)]
    assert fitting == ["sdxl", "sdxl-lightning", "sdxl-turbo", "sdxl-tiny"]
    assert [each.class_name for each in mine.components] == ["ControlNetModel"]


def test_refiner_is_an_extra_without_types(load):
    text = ENTRY.replace('"controlnet"', '"refiner"').replace('types = ["pose", "canny"]', "")
    mine = load(text)["mine"]
    assert (mine.components[0].class_name, mine.types) == ("UNet2DConditionModel", ())


def test_refiner_with_types_is_refused(load):
    with pytest.raises(InvalidSettings, match="types: expected no such field for a refiner"):
        load(ENTRY.replace('"controlnet"', '"refiner"'))


def test_refiner_of_a_family_that_has_none_is_refused(load):
    text = ENTRY.replace('"controlnet"', '"refiner"').replace('"sdxl"', '"flux"')
    with pytest.raises(InvalidSettings, match="family: expected one of sdxl, got 'flux'"):
        load(text)


def test_file_may_have_models_and_extras(tmp_path):
    path = tmp_path / "models.toml"
    path.write_text(ENTRY, encoding="utf-8")
    assert load_catalog(path).keys() == load_catalog().keys()


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('kind = "controlnet"', 'kind = "lora"', "kind"),
        ('kind = "controlnet"', "", "kind"),
        ('family = "sdxl"', 'family = "sdxxl"', "family"),
        ('family = "sdxl"', "", "family"),
        ('types = ["pose", "canny"]', "types = []", "types"),
        ('types = ["pose", "canny"]', 'types = ["Pose"]', "types"),
        ('types = ["pose", "canny"]', 'types = "pose"', "types"),
        ('types = ["pose", "canny"]', "", "types"),
        ("gib_16 = 2.33", "gib_16 = 0", "gib_16"),
        ("gib_16 = 2.33", "", "gib_16"),
        ('licence = "Apache-2.0"', "", "licence"),
        ('licence = "Apache-2.0"', 'licence = "MIT"\nname = "yours"', "name"),
        ('licence = "Apache-2.0"', 'licence = "MIT"\nlicense = "MIT"', "license"),
    ],
)
def test_broken_entry_is_named_by_file_extra_and_field(load, old, new, field):
    assert old in ENTRY
    with pytest.raises(InvalidSettings, match=r"models\.toml: extra 'mine': ") as caught:
        load(ENTRY.replace(old, new))
    assert field in str(caught.value)


@pytest.mark.parametrize("name", ["sdxl", "unet"])
def test_name_that_something_else_has_is_refused(load, name):
    with pytest.raises(InvalidSettings, match=f"extra '{name}': expected a name"):
        check_names(load(ENTRY.replace("mine", name)), load_catalog())


def offered(**environ):
    worker = build_worker(make_settings(PIXPOD_DEVICE="cpu", **environ))
    return set(worker.capabilities.extras)


def test_all_extras_that_are_there_and_fit_a_model_are_offered():
    assert offered() == {name for name in load_extras() if name.endswith("-tiny")}
    sd15 = {"sd15-canny-tiny", "swin2sr-x2-tiny", *SHIPPED_ADAPTER}
    assert offered(PIXPOD_MODELS="sd15-tiny") == sd15


def test_deployment_offers_those_that_it_names():
    named = {"PIXPOD_MODELS": "sdxl-tiny", "PIXPOD_EXTRAS": "sdxl-depth-tiny"}
    assert offered(**named) == {"sdxl-depth-tiny"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("canny", "extra 'canny' is not in the catalog, which has sdxl-refiner"),
        ("flux-canny-tiny", "flux-canny-tiny fits none of sdxl-tiny"),
    ],
)
def test_named_extra_that_cannot_be_offered_is_refused(name, text):
    with pytest.raises(InvalidSettings, match=text):
        offered(PIXPOD_MODELS="sdxl-tiny", PIXPOD_EXTRAS=name)


UNION = ENTRY.replace("[extras.mine]", "[extras.union]").replace(
    'types = ["pose", "canny"]', 'types = ["pose", "depth"]\nmodes = { pose = 0, depth = 1 }'
)


def test_union_net_is_of_the_class_that_is_told_types(load):
    extras = load(ENTRY + UNION)
    flux = load(UNION.replace("sdxl", "flux"))
    assert extras["union"].components[0].class_name == "ControlNetUnionModel"
    assert flux["union"].components[0].class_name == "FluxControlNetModel"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("depth = 1", "canny = 1", "modes: expected one for each of pose, depth, got pose, canny"),
        ("pose = 0, ", "", "modes: expected one for each of pose, depth, got depth"),
        ('"sdxl"', '"sd15"', "modes: SD 1.5 has no nets for several types"),
        ("pose = 0", "pose = -1", "modes.pose: "),
    ],
)
def test_modes_that_do_not_fit_are_refused(load, old, new, reason):
    assert old in UNION
    with pytest.raises(InvalidSettings, match=f"extra 'union': {reason}"):
        load(UNION.replace(old, new))


PROMPTS = EXTRAS_FILE.read_text(encoding="utf-8")


def names_for(model, extras, kind=None):
    """Names of extras that fit a model, without those that fit any."""
    fitting = extras_for(CATALOG[model], extras, kind)
    return [extra.name for extra in fitting if not extra.kind.sees_pixels]


def test_image_encoder_fits_where_an_adapter_names_it():
    check_names(OFFERED_EXTRAS, CATALOG)
    assert names_for("sd15-tiny", OFFERED_EXTRAS) == ["sd15-canny-tiny", "tiny-vit", "sd15-plus"]
    assert names_for("sdxl-tiny", OFFERED_EXTRAS, ExtraKind.IP_ADAPTER) == ["sdxl-plus"]
    assert names_for("flux-tiny", OFFERED_EXTRAS, ExtraKind.REDUX) == ["flux-redux-tiny"]
    assert names_for("sdxl", OFFERED_EXTRAS) == ["sdxl-refiner"]
    real = load_extras()
    assert names_for("sdxl", real) == ["sdxl-refiner", "vit-h", "ip-adapter-plus-sdxl"]
    assert names_for("sd15", real) == ["vit-h", "ip-adapter-plus-sd15"]
    assert names_for("flux-dev", real) == ["redux"]


def test_adapter_brings_its_image_encoder_along():
    extras = OFFERED_EXTRAS
    models = {"sd15-tiny": CATALOG["sd15-tiny"]}
    assert list(choose_extras(["sd15-plus"], extras, models)) == ["sd15-plus", "tiny-vit"]
    there = ["sd15-canny-tiny", "sd15-plus", "flux-redux-tiny"]
    assert list(choose_extras(None, extras, models, there)) == ["sd15-canny-tiny"]
    there += ["tiny-vit"]
    found = choose_extras(None, extras, models, there)
    assert set(found) == {"sd15-canny-tiny", "sd15-plus", "tiny-vit"}
    with pytest.raises(InvalidSettings, match="sdxl-plus fits none of sd15-tiny"):
        choose_extras(["sdxl-plus"], extras, models)


UPSCALER = """
[extras.mine]
kind = "upscaler"
scale = 4
licence = "MIT"
gib_16 = 0.02
"""


def test_upscaler_fits_all_models_or_those_that_it_names(load):
    mine = load(UPSCALER)["mine"]
    assert [each.class_name for each in mine.components] == ["Swin2SRForImageSuperResolution"]
    assert [each.library for each in mine.components] == ["transformers"]
    assert all(mine.fits(spec) for spec in CATALOG.values())
    few = load(UPSCALER + 'models = ["sdxl"]')["mine"]
    assert [name for name, spec in CATALOG.items() if few.fits(spec)] == ["sdxl"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("scale = 4", "", "scale: expected a value for a upscaler"),
        ("scale = 4", "scale = 3", "scale: "),
        ("scale = 4", 'scale = 4\nfamily = "sdxl"', "family: expected no such field"),
    ],
)
def test_broken_entry_of_an_upscaler_is_refused(load, old, new, reason):
    with pytest.raises(InvalidSettings, match=f"extra 'mine': {reason}"):
        load(UPSCALER.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('encoder = "tiny-vit"', "", "extra 'sd15-plus': encoder: expected a value"),
        ('encoder = "tiny-vit"', 'encoder = "vit"', "encoder: expected the name of an extra"),
        ('encoder = "tiny-vit"', 'encoder = "redux"', "encoder: expected the name of an extra"),
        ('file = "ip-adapter-plus_sd15.safetensors"', "", "extra 'sd15-plus': file: expected a"),
        ("plus_sd15.safetensors", "plus_sd15.bin", "extra 'sd15-plus': file: "),
        ('"ip-adapter-plus_sd15', '"../ip-adapter-plus_sd15', "extra 'sd15-plus': file: "),
        ('family = "sd15"', 'family = "flux"', "family: expected one of sdxl, sd15, got 'flux'"),
        ('family = "sd15"', 'family = "sd15"\ntypes = ["a"]', "types: expected no such field"),
        ('family = "sd15"', 'family = "sd15"\nmodes = { a = 1 }', "modes: expected no such field"),
        ('family = "sd15"', 'family = "sd15"\nsize_px = 224', "size_px: expected no such field"),
        ("size_px = 224", "", "extra 'tiny-vit': size_px: expected a value"),
        ("size_px = 224", "size_px = -1", "extra 'tiny-vit': size_px: "),
        ("size_px = 224", 'size_px = 224\nfamily = "sd15"', "family: expected no such field"),
        ('"ip_adapter"\nfamily = "sd15"', '"redux"\nfamily = "flux"', "expected no such field"),
    ],
)
def test_broken_entry_of_an_image_prompt_is_refused(load, old, new, reason):
    assert old in PROMPTS
    with pytest.raises(InvalidSettings, match=reason):
        load(PROMPTS.replace(old, new))

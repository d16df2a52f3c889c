"""The built-in models are coherent, and a broken entry is named by file, model and field."""

from dataclasses import replace

import pytest

from pixpod.catalog import load_catalog
from pixpod.errors import InvalidSettings, LicenceNotAccepted
from pixpod.families import FAMILIES, Precision
from pixpod.weights.layout import check_licence

ENTRY = """
[mine]
family = "flux"
licence = "MIT"
precision = { cpu = "float32", cuda = "bfloat16" }

[mine.defaults]
width = 512
height = 512
num_inference_steps = 20
guidance_scale = 3.5
max_sequence_length = 256
scheduler = "FlowMatchEulerDiscreteScheduler"

[mine.limits]
min_side_px = 256
max_side_px = 1024
max_pixels = 1_048_576
max_steps = 50
max_guidance = 10.0
max_images = 4
max_sequence_length = 512
"""


@pytest.fixture
def load(tmp_path):
    def load_text(text, **options):
        path = tmp_path / "models.toml"
        path.write_text(text, encoding="utf-8")
        return load_catalog(path, **options)

    return load_text


def test_builtin_models_are_these():
    flux = {
        "flux-dev",
        "flux-dev-16bit",
        "flux-krea-dev",
        "flux-kontext",
        "flux-fill",
        "flux-schnell",
    }
    unets = {"sdxl", "sdxl-lightning", "sdxl-turbo", "sd15"}
    others = {"flux2-klein", "z-image-turbo", "sd35-medium", "sd35-large"}
    tiny = {"flux-tiny", "flux-kontext-tiny", "sd35-tiny", "sdxl-tiny", "sd15-tiny"}
    assert load_catalog().keys() == flux | others | unets | tiny


@pytest.mark.parametrize("spec", load_catalog().values(), ids=lambda spec: spec.name)
def test_builtin_model_is_on_the_hub_or_ships_with_the_source(spec):
    is_tiny = spec.name.endswith("-tiny")
    assert (spec.repository is None) == is_tiny
    for revision in filter(None, (spec.revision, spec.vae_revision, spec.denoiser_revision)):
        assert len(revision) == 40
    assert (spec.vae_repository is None) == (spec.vae_revision is None)
    assert spec.requires_cuda == (not is_tiny)
    assert spec.precision.keys() == ({"cpu", "cuda"} if is_tiny else {"cuda"})


@pytest.mark.parametrize("spec", load_catalog().values(), ids=lambda spec: spec.name)
def test_only_families_that_are_quantized_run_in_float8(spec):
    if Precision.FLOAT8_DYNAMIC in spec.precision.values():
        assert spec.family.quantization is not None


def test_default_request_takes_fields_of_all_its_values():
    spec = load_catalog()["flux-dev"]
    request = spec.default_request(width=512, prompt="x", guidance_scale=2.0, clip_skip=1)
    assert (request.model, request.width, request.height) == ("flux-dev", 512, 1024)
    assert (request.prompts.prompt, request.text.clip_skip) == ("x", 1)
    assert request.text.max_sequence_length == spec.defaults.max_sequence_length
    assert (request.sampling.guidance_scale, request.sampling.num_inference_steps) == (2.0, 28)
    with pytest.raises(TypeError, match="colour"):
        spec.default_request(colour="red")


def test_catalog_takes_other_families(load):
    other = replace(FAMILIES["flux"], name="mine")
    entry = ENTRY.replace('family = "flux"', 'family = "mine"')
    with pytest.raises(InvalidSettings, match=f"expected one of {', '.join(FAMILIES)}, got 'mine'"):
        load(entry)
    assert load(entry, families={"mine": other, **FAMILIES})["mine"].family is other


def test_extra_file_adds_a_model(load):
    catalog = load(ENTRY)
    assert catalog.keys() == {*load_catalog(), "mine"}
    assert catalog["mine"].defaults.width == 512


WITHOUT_T5 = 'without = ["text_encoder_3"]'


def entry_of(family, *lines):
    return ENTRY.replace('family = "flux"', "\n".join((f'family = "{family}"', *lines)))


def test_model_may_lack_what_its_family_can_do_without(load):
    family = load(entry_of("sd35", WITHOUT_T5))["mine"].family
    assert family.text_encoders == ("text_encoder", "text_encoder_2")
    assert family.large_text_encoder is None
    assert FAMILIES["sd35"].large_text_encoder == "text_encoder_3"
    for family, line in (("flux", WITHOUT_T5), ("sd35", 'without = ["vae"]')):
        with pytest.raises(InvalidSettings, match="'mine': without does not fit the family"):
            load(entry_of(family, line))


def test_model_may_have_a_denoiser_of_its_own_size(load):
    family = load(entry_of("sd35", "denoiser_size = { gib_16 = 9.5 }"))["mine"].family
    denoiser = family.component("transformer")
    assert (denoiser.gib_16, denoiser.gib_8) == (9.5, None)
    assert family.component("vae") == FAMILIES["sd35"].component("vae")


def test_extra_file_replaces_a_model(load):
    catalog = load(ENTRY.replace("mine", "sdxl"))
    assert catalog["sdxl"].family is FAMILIES["flux"]
    assert catalog.keys() == load_catalog().keys()


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('family = "flux"', 'family = "flax"', "family"),
        ('family = "flux"', "", "family"),
        ('licence = "MIT"', "licence = 5", "licence"),
        ('licence = "MIT"', 'licence = "MIT"\nlicense = "MIT"', "license"),
        ('licence = "MIT"', 'licence = "MIT"\nname = "yours"', "name"),
        ('"float32"', '"float4"', "precision.cpu"),
        ("cpu =", "gpu =", "precision"),
        ('{ cpu = "float32", cuda = "bfloat16" }', "{}", "precision"),
        ("width = 512", "width = 520", "defaults.width"),
        ("width = 512", "width = 240", "defaults.width"),
        ("height = 512", "height = 1040", "defaults.height"),
        ("height = 512", 'height = "512"', "defaults.height"),
        ("height = 512", "height = true", "defaults.height"),
        ("height = 512", "", "defaults.height"),
        ("num_inference_steps = 20", "num_inference_steps = 0", "num_inference_steps"),
        ("num_inference_steps = 20", "num_inference_steps = 51", "num_inference_steps"),
        ("guidance_scale = 3.5", "guidance_scale = 10.5", "defaults.guidance_scale"),
        ("guidance_scale = 3.5", "guidance_scale = nan", "defaults.guidance_scale"),
        ("guidance_scale = 3.5", "guidance_scale = -1.0", "defaults.guidance_scale"),
        ("guidance_scale = 3.5", "", "defaults.guidance_scale"),
        ('licence = "MIT"', 'licence = "MIT"\ntakes_guidance = false', "defaults.guidance_scale"),
        ("max_sequence_length = 256", "", "defaults.max_sequence_length"),
        ("max_sequence_length = 512", "", "limits.max_sequence_length"),
        ("max_sequence_length = 512", "max_sequence_length = 255", "limits.max_sequence_length"),
        ("FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler", "defaults.scheduler"),
        ('licence = "MIT"', 'licence = "MIT"\nschedulers = ["Heun"]', "schedulers"),
        ('licence = "MIT"', 'licence = "MIT"\nschedulers = ["Euler"]', "defaults.scheduler"),
        ('licence = "MIT"', 'licence = "MIT"\nstep_counts = [4]', "num_inference_steps"),
        ('licence = "MIT"', 'licence = "MIT"\nstep_counts = [20, 60]', "step_counts"),
        ('licence = "MIT"', 'licence = "MIT"\ndenoiser_file = "a"', "denoiser_repository"),
        (
            'licence = "MIT"',
            'licence = "MIT"\ndenoiser_file = "a/b"\ndenoiser_repository = "c/d"',
            "denoiser_file",
        ),
        ("min_side_px = 256", "min_side_px = 250", "limits.min_side_px"),
        ("max_side_px = 1024", "max_side_px = 1030", "limits.max_side_px"),
        ("max_pixels = 1_048_576", "max_pixels = 512", "limits.max_pixels"),
        ("max_guidance = 10.0", "max_guidance = inf", "limits.max_guidance"),
        ("max_images = 4", "max_images = 0", "limits.max_images"),
        ("max_images = 4", "max_images = 4\nmax_batch = 4", "limits.max_batch"),
    ],
)
def test_broken_entry_is_named_by_file_model_and_field(load, old, new, field):
    assert old in ENTRY
    with pytest.raises(InvalidSettings) as caught:
        load(ENTRY.replace(old, new))
    assert "models.toml: model 'mine': " in str(caught.value)
    assert field in str(caught.value).partition("'mine': ")[2]


def test_entry_that_is_no_table_is_named(load):
    with pytest.raises(InvalidSettings, match=r"models\.toml: model 'mine': expected a table"):
        load("mine = 5")


@pytest.mark.parametrize("content", [b"[mine", b"\xff\xfe"])
def test_file_that_is_no_toml_names_the_variable(tmp_path, content):
    path = tmp_path / "models.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidSettings, match=r"PIXPOD_CATALOG=.*models\.toml"):
        load_catalog(path)


def test_missing_file_names_the_variable(tmp_path):
    with pytest.raises(InvalidSettings, match="PIXPOD_CATALOG"):
        load_catalog(tmp_path / "absent.toml")


def test_licence_must_be_accepted_where_the_catalog_says_so():
    catalog = load_catalog()
    with pytest.raises(
        LicenceNotAccepted, match=r"flux-1-dev-non-commercial.*PIXPOD_ACCEPT_LICENCES"
    ):
        check_licence(catalog["flux-dev"], frozenset({"another"}))
    check_licence(catalog["flux-dev"], frozenset({"flux-1-dev-non-commercial"}))
    check_licence(catalog["flux-schnell"], frozenset())

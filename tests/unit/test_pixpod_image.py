"""The commands that build and run an image, and the list of what is in it."""

from pathlib import Path

import pytest

from pixpod_tools.container.building import BuildSettings, build_command
from pixpod_tools.container.cli import default_tag, main
from pixpod_tools.container.commands import ImageError, output
from pixpod_tools.container.layers import short_line
from pixpod_tools.container.running import run_command
from pixpod_tools.container.sbom import baked_models, completed, debian_packages
from pixpod_tools.container.wheels import provide_wheels

ROOT = Path(__file__).resolve().parents[2]


def command(**settings):
    given = {"root": ROOT, "profile": "tiny", "tag": "localhost/pixpod:x", **settings}
    return list(build_command(BuildSettings(**given)))


def test_local_build_needs_no_registry_and_no_index():
    told = command(is_local=True)
    assert "--pull=never" in told
    assert "--build-arg=PIP_OPTIONS=--no-index" in told
    assert "--build-arg=REQUIRE_HASHES=false" in told
    assert "--build-arg=BASE_IMAGE=localhost/pixpod-base:bookworm" in told
    assert any(each.startswith("--build-context=wheels=") for each in told)


def test_build_leaves_the_base_image_to_the_dockerfile():
    assert not [each for each in command() if "BASE_IMAGE" in each or "pull" in each]
    assert not [each for each in command() if "REQUIRE_HASHES" in each]
    assert "--build-arg=BASE_IMAGE=python:3.12" in command(base_image="python:3.12")


def test_token_is_a_secret_and_no_argument(tmp_path):
    told = command(hf_token_file=tmp_path / "token")
    assert f"--secret=id=hf_token,src={tmp_path / 'token'}" in told
    assert not [each for each in told if each.startswith(("--env", "--volume"))]


def test_extras_and_their_catalog_are_build_arguments():
    told = command(extras="canny=float16 depth", catalog="nets.toml")
    assert {"--build-arg=EXTRAS=canny=float16 depth", "--build-arg=CATALOG=nets.toml"} <= {*told}
    assert not [each for each in command() if "EXTRAS" in each or "CATALOG" in each]


def test_build_is_labelled_with_version_and_revision():
    told = dict(each.removeprefix("--build-arg=").split("=", 1) for each in command()[5:-1])
    assert told["VERSION"][0].isdecimal()
    assert len(told["REVISION"]) == 40


def test_container_is_locked_down():
    told = run_command("image", name="worker", environment=["B", "A"], command=["python"])
    assert told[-2:] == ["image", "python"]
    assert told.index("--env=A") < told.index("--env=B") < told.index("image")
    wanted = {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"}
    assert wanted < set(told)
    assert any(each.startswith("--memory=") for each in told)
    assert any(each.startswith("--pids-limit=") for each in told)


@pytest.mark.parametrize("unsafe", ["noexec", "suid,dev"])
def test_compiled_code_can_be_loaded_from_tmp(unsafe):
    (mount,) = [each for each in run_command("image", name="x") if each.startswith("--tmpfs=/tmp")]
    options = mount.partition(":")[2].split(",")
    assert {"exec", "nosuid", "nodev"} <= set(options)
    assert not set(unsafe.split(",")) & set(options)


def test_profile_name_becomes_a_valid_tag():
    assert default_tag("flux-schnell+sdxl") == "localhost/pixpod:flux-schnell-sdxl"


@pytest.mark.parametrize(
    ("kept", "shown"),
    [
        ("/bin/sh -c #(nop) COPY dir:0a1 in /weights/ ", "COPY /weights/"),
        ("/bin/sh -c ADD file:0a1 in / ", "ADD /"),
        ('|1 PROFILE=tiny /bin/sh -c packages="tini";  apt', 'RUN packages="tini"; apt'),
        ("/bin/bash -c useradd", "RUN useradd"),
    ],
    ids=["copy", "add", "run-with-arguments", "run"],
)
def test_layer_is_named_by_its_line(kept, shown):
    assert short_line(kept) == shown


def test_missing_program_is_named():
    with pytest.raises(ImageError, match="no-such-program is not installed"):
        output(("no-such-program",))


def test_failing_program_is_quoted():
    with pytest.raises(ImageError, match=r"exit status 3\. no space left"):
        output(("sh", "-c", "echo no space left >&2; exit 3"))


def test_empty_secret_is_not_searched_for(tmp_path, capsys):
    (tmp_path / "token").write_text("\n", encoding="utf-8")
    assert main(["search", "--secret-file", str(tmp_path / "token")]) == 1
    assert "is empty" in capsys.readouterr().err


def test_wheels_that_cannot_be_fetched_leave_nothing_behind(tmp_path):
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "old.whl").touch()
    with pytest.raises(ImageError, match="-m pip"):
        provide_wheels(tmp_path, folder, "no version")
    assert not (folder / "old.whl").exists()
    assert not (folder / "fetched").exists()


def test_debian_packages_have_a_package_url():
    (package,) = debian_packages("libc6\t2.36-9+deb12u10\tamd64\n")
    assert package["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64"
    assert package["version"] == "2.36-9+deb12u10"


def test_models_carry_licence_and_origin(tmp_path):
    (tmp_path / "manifest.toml").write_text(
        '[models.a]\npath = "a"\nrevision = "1"\nlicence = "MIT"\nrepository = "some/a"\n'
        '[models.b]\npath = "b"\nrevision = "2"\n[extras.c]\npath = "c"\nrevision = "3"\n',
        encoding="utf-8",
    )
    first, second, extra = baked_models(tmp_path)
    assert extra["name"] == "c"
    assert first["licenses"] == [{"license": {"name": "MIT"}}]
    assert first["purl"] == "pkg:huggingface/some/a@1"
    assert second.keys() == {"type", "bom-ref", "name", "version"}


def test_image_without_weights_lists_no_model(tmp_path):
    assert list(baked_models(tmp_path)) == []


def test_bill_of_materials_keeps_what_it_had():
    had = {"bomFormat": "CycloneDX", "metadata": {"tools": 1}, "components": [{"name": "torch"}]}
    told = completed(had, [{"name": "tini"}], "1.0")
    assert told["metadata"]["tools"] == 1
    assert told["metadata"]["component"]["version"] == "1.0"
    assert [each["name"] for each in told["components"]] == ["torch", "tini"]
    assert had["components"] == [{"name": "torch"}]

"""The table of settings: names in the repository, unknown and renamed names, defaults, the page."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pixpod.errors import InvalidSettings
from pixpod.settings import Settings
from pixpod.variables import RENAMED, VARIABLES

ROOT = Path(__file__).parents[2]
PLACES = ("src", "docs", "tests", "scripts", ".runpod", "README.md", "Dockerfile", "handler.py")
NAME = re.compile(r"(?<![A-Z_])PIXPOD_[A-Z][A-Z0-9_]*")
OLD_NAMES_IN = ("src/pixpod/variables.py", "tests/unit/test_variables.py")
UNKNOWN = "PIXPOD_" + "ACCEPTALL_LICENCES"


def text_files() -> Iterator[Path]:
    for place in PLACES:
        path = ROOT / place
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            is_text = file.suffix in ("", ".json", ".md", ".py", ".svg", ".toml")
            if file.is_file() and is_text and ".egg-info" not in str(file):
                yield file


def test_each_name_in_the_repository_is_in_the_table():
    unknown = {
        (str(file.relative_to(ROOT)), name)
        for file in text_files()
        for name in NAME.findall(file.read_text(encoding="utf-8", errors="replace"))
        if name not in VARIABLES
        if name not in RENAMED or str(file.relative_to(ROOT)) not in OLD_NAMES_IN
    }
    assert unknown == set()


class Reads(Mapping[str, str]):
    """An environment that notes which variables are read."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def test_worker_reads_each_variable_of_the_table():
    environ = Reads({"PIXPOD_S3_BUCKET": "images", "PIXPOD_KEY_SECRET": "secret"})
    Settings.from_env(environ)
    assert {name for name in environ.names if name.startswith("PIXPOD_")} == set(VARIABLES)
    also = {name for variable in VARIABLES.values() for name in variable.also_reads}
    assert also - {"AWS_SESSION_TOKEN"} <= environ.names


@pytest.mark.parametrize(
    ("name", "default"),
    [(name, each.default) for name, each in VARIABLES.items() if each.default is not None],
)
def test_default_of_the_table_is_the_default(name, default):
    bucket = {"PIXPOD_S3_BUCKET": "images", "PIXPOD_KEY_SECRET": "secret"}
    assert Settings.from_env({**bucket, name: default}) == Settings.from_env(bucket)


def test_each_variable_has_a_default_or_says_what_applies_instead():
    for name, variable in VARIABLES.items():
        assert (variable.default is None) == bool(variable.no_default), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (UNKNOWN, f"{UNKNOWN} is not a setting: did you mean PIXPOD_ACCEPT_LICENCES?"),
        ("PIXPOD_" + "MODEL", "PIXPOD_" + "MODEL is not a setting: did you mean PIXPOD_MODELS?"),
        *(
            (old, f"{old} is not a setting: it was renamed to {new}")
            for old, new in RENAMED.items()
        ),
    ],
)
def test_unknown_name_is_refused_with_the_right_one(name, message):
    with pytest.raises(InvalidSettings) as refusal:
        Settings.from_env({name: "1"})
    assert str(refusal.value).endswith(message)


def test_name_like_no_setting_is_refused_with_the_list():
    with pytest.raises(InvalidSettings, match=r"expected one of PIXPOD_WEIGHTS_DIR, .*LOG_LEVEL"):
        Settings.from_env({"PIXPOD_" + "QZ": ""})


def test_value_of_an_unknown_name_is_not_shown():
    with pytest.raises(InvalidSettings) as refusal:
        Settings.from_env({"PIXPOD_" + "S3_SECRET": "hidden"})
    assert "hidden" not in str(refusal.value)


def test_names_of_others_are_not_looked_at():
    Settings.from_env({"PIXPODX": "1", "MY_PIXPOD_" + "THING": "1"})

"""Modules that run once something in them is asked for."""

import importlib
import os
import sys
import threading
import time
from importlib.util import find_spec

import pytest

from pixpod.engine.imports.deferral import defer, has_run, hidden, imported_names, run

PACKAGE = """
import os
os.environ["RUNS_OF_LAZY"] = str(int(os.environ["RUNS_OF_LAZY"]) + 1)
from .shapes import circle
from .colours import red as crimson
title = "real"
"""


@pytest.fixture
def lazy(tmp_path, monkeypatch):
    """A package `lazy` that counts how often it runs; returns its number of runs."""
    folder = tmp_path / "lazy"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "shapes.py").write_text("circle = 'circle'\n")
    (folder / "colours.py").write_text("red = 'red'\n")
    (folder / "unused.py").write_text("from lazy import title\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    monkeypatch.setenv("RUNS_OF_LAZY", "0")
    imported_names.cache_clear()
    yield lambda: int(os.environ["RUNS_OF_LAZY"])
    for name in [each for each in sys.modules if each.split(".")[0] == "lazy"]:
        del sys.modules[name]


def test_modules_of_a_package_are_imported_without_running_it(lazy):
    defer("lazy")
    from lazy import colours
    from lazy.shapes import circle

    assert (circle, colours.red, lazy()) == ("circle", "red", 0)


def test_package_runs_once_when_something_else_is_asked_for(lazy):
    defer("lazy")
    import lazy as package

    assert (package.title, package.crimson, lazy()) == ("real", "red", 1)
    assert package.circle == "circle"
    assert lazy() == 1
    assert has_run(package)


def test_name_that_its_code_imports_is_not_taken_for_a_module(lazy, tmp_path):
    (tmp_path / "lazy" / "circle.py").write_text("title = 'a module'\n")
    defer("lazy")
    from lazy import circle

    assert (circle, lazy()) == ("circle", 1)


def test_unknown_name_is_an_attribute_error(lazy):
    defer("lazy")
    import lazy as package

    with pytest.raises(AttributeError, match="'lazy' has no attribute 'square'"):
        package.square  # noqa: B018
    with pytest.raises(ImportError, match="square"):
        from lazy import square  # noqa: F401


def test_given_values_are_there_until_it_runs(lazy):
    done = []
    defer("lazy", given={"title": "given"}, afterwards=lambda: done.append(package.title))
    import lazy as package

    assert (package.title, lazy(), done) == ("given", 0, [])
    run(package)
    assert (package.title, lazy(), done) == ("real", 1, ["real"])


def test_names_come_from_their_places_without_running_it(lazy):
    defer("lazy", places=imported_names("lazy"))
    from lazy import circle, crimson

    assert (circle, crimson, lazy()) == ("circle", "red", 0)


def test_module_that_fails_can_run_again(lazy, monkeypatch):
    defer("lazy", given={"title": "given"})
    import lazy as package

    with monkeypatch.context() as broken:
        broken.setitem(sys.modules, "lazy.shapes", None)
        with pytest.raises(ImportError):
            run(package)
    assert (package.title, has_run(package)) == ("given", False)
    run(package)
    assert package.title == "real"


def test_module_that_puts_another_in_its_place_is_followed(lazy, tmp_path):
    (tmp_path / "lazy" / "__init__.py").write_text(
        "import sys, types\n"
        "other = types.ModuleType(__name__)\n"
        "other.title = 'of another'\n"
        "sys.modules[__name__] = other\n"
    )
    defer("lazy")
    import lazy as package

    assert package.title == "of another"
    assert sys.modules["lazy"] is not package
    with pytest.raises(AttributeError):
        package.square  # noqa: B018


def test_module_runs_once_for_threads_that_ask_at_once(lazy, tmp_path):
    init = tmp_path / "lazy" / "__init__.py"
    init.write_text("import time\ntime.sleep(0.2)\n" + PACKAGE)
    defer("lazy")
    import lazy as package

    found = []
    threads = [threading.Thread(target=lambda: found.append(package.title)) for _ in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert (found, lazy()) == (["real"] * 4, 1)


def test_imported_module_stays(lazy):
    import lazy as package

    defer("lazy", given={"title": "given"})
    assert (package.title, lazy()) == ("real", 1)


def test_missing_module_cannot_be_deferred():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        defer("no_such_module")


def test_hidden_package_looks_not_installed_and_comes_back(lazy):
    import lazy as package

    with hidden("lazy"):
        assert find_spec("lazy") is None
        with pytest.raises(ImportError):
            importlib.import_module("lazy")
    assert importlib.import_module("lazy") is package
    with hidden("lazy.unused"):
        pass
    assert "lazy.unused" not in sys.modules


def test_package_can_run_before_its_modules(lazy):
    defer("lazy", given={"title": "given"}, runs_first=True)
    defer("lazy.unused")
    from lazy import title, unused

    assert (title, lazy(), has_run(unused)) == ("given", 0, False)
    from lazy.colours import red

    assert (red, lazy(), has_run(unused)) == ("red", 1, False)
    assert str(sys.modules["lazy.colours"].__spec__).count("colours.py") == 1
    assert unused.title == "real"


def test_other_threads_can_import_while_a_package_runs(lazy, tmp_path):
    (tmp_path / "lazy" / "__init__.py").write_text(
        "import threading\n"
        "other = threading.Thread(target=__import__, args=['wave'])\n"
        "other.start()\n"
        "other.join(30)\n"
        "title = 'waited' if other.is_alive() else 'real'\n"
    )
    sys.modules.pop("wave", None)
    defer("lazy", runs_first=True)
    from lazy import colours

    assert sys.modules["lazy"].title == "real"
    assert colours.red == "red"


def test_module_of_such_a_package_runs_it(lazy):
    defer("lazy", runs_first=True)
    defer("lazy.unused")
    from lazy import unused

    assert lazy() == 0
    assert (unused.title, lazy()) == ("real", 1)

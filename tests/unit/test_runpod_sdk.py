"""What we touch of the SDK without its documentation's word for it: notices when that changes."""

import inspect
import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).resolve().parents[2] / "src"


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SRC), "PATH": "/usr/bin:/bin"},
    )
    return done.stdout.splitlines()


def test_only_the_processors_name_is_asked_of_cpuinfo():
    """Else the stand-in would have to answer more."""
    from runpod.serverless.utils import rp_debugger

    source = inspect.getsource(rp_debugger)
    assert source.count("cpuinfo.") == 1
    assert 'cpuinfo.get_cpu_info()["brand_raw"]' in source


def test_processor_has_its_name_and_cpuinfo_stays_out():
    name, is_real_loaded, is_importable = run(
        "import sys\n"
        "from pixpod.runpod_sdk import _processor_name_from_proc, _processor_name\n"
        "with _processor_name_from_proc():\n"
        "    import runpod\n"
        "from runpod.serverless.utils import rp_debugger\n"
        "print(rp_debugger.PROCESSOR == _processor_name())\n"
        "print('cpuinfo' in sys.modules)\n"
        "import cpuinfo\n"
        "print(hasattr(cpuinfo, 'get_cpu_info_json'))\n"
    )
    assert (name, is_real_loaded, is_importable) == ("True", "False", "True")


def test_cpuinfo_that_is_there_already_is_left_alone():
    (is_same,) = run(
        "import sys, types\n"
        "mine = sys.modules['cpuinfo'] = types.ModuleType('cpuinfo')\n"
        "from pixpod.runpod_sdk import _processor_name_from_proc\n"
        "with _processor_name_from_proc():\n"
        "    assert sys.modules['cpuinfo'] is mine\n"
        "print(sys.modules['cpuinfo'] is mine)\n"
    )
    assert is_same == "True"


def test_report_of_an_unhealthy_worker_takes_a_check_and_a_reason():
    from runpod.serverless.modules import rp_fitness

    assert [*inspect.signature(rp_fitness._report_unhealthy).parameters] == ["check", "reason"]

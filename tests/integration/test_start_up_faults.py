"""docs/start-up-faults.md: each fault is made, and what follows is what the table says."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.broken_weights import (
    MODEL,
    UNET,
    broken_copy,
    change_entry,
    copy_weights,
    cut,
    flip,
    say_larger,
    write_catalog,
    write_manifest,
)
from support.factories import make_settings
from support.hub_server import TOKEN, Repository, running_hub
from support.platform import call, submit
from support.weights_directories import files_of, write_cached

from pixpod import errors
from pixpod.bootstrap import build_worker
from pixpod.catalog import load_catalog
from pixpod.engine.device import find_hardware, prepare_device
from pixpod.engine.device_probe import DRIVER
from pixpod.engine.loading import components
from pixpod.engine.precision.precision import choose_precision
from pixpod.errors import DeviceUnavailable, Fault, WorkerError
from pixpod.families import Precision
from pixpod.serving.refusing_worker import RefusingWorker
from pixpod.serving.worker import Worker
from pixpod.settings import SOURCE_WEIGHTS_DIR
from pixpod.weights.layout import CheckpointInfo
from pixpod.weights.manifest import MANIFEST, ManifestEntry, read_manifest
from runpod_emulator.behaviour import Behaviour
from runpod_emulator.testing import RunningEmulator, running_emulator, settings_for

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "start-up-faults.md"
PROMPT = "a red circle on a blue background, zanzibar"
LIMIT_S = 240


def job(model: str = MODEL) -> dict:
    return {
        "model": model,
        "prompt": PROMPT,
        "width": 32,
        "height": 32,
        "num_inference_steps": 1,
        "output": {"delivery": "inline"},
    }


# --- in this process -------------------------------------------------------------------------


class Boot:
    """A worker started as handler.py does, but where it would leave the host, `faults` has why."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.faults: list[WorkerError] = []
        self._worker: Worker | RefusingWorker
        try:
            self._worker = build_worker(make_settings(**environ), None, self.faults.append)
        except WorkerError as error:
            self._worker = RefusingWorker(error)
            return
        self._worker.start()

    def reply(self, model: str = MODEL) -> dict:
        return asyncio.run(self._worker.handle({"id": "job-1", "input": job(model)}))

    def refusal(self, model: str = MODEL) -> str:
        """What a job is answered with; the host must not be blamed for it."""
        self._worker.check_host()
        reply = self.reply(model)
        assert self.faults == []
        assert "refresh_worker" not in reply, "another worker would not do better"
        assert PROMPT not in reply["error"]
        return reply["error"]

    def check_host(self) -> None:
        self._worker.check_host()

    def stop(self) -> None:
        if not isinstance(self._worker, RefusingWorker):
            self._worker.stop()


@pytest.fixture
def boot(tmp_path):
    """Boots from `tmp_path/weights` if the test has put something there, and from nothing else."""
    made = []

    def make(**environ: str) -> Boot:
        places = {
            "PIXPOD_WEIGHTS_DIR": tmp_path / "weights",
            "PIXPOD_HUB_CACHE_DIR": tmp_path / "hub",
            "PIXPOD_VOLUME_DIR": tmp_path / "volume",
            "PIXPOD_LOCAL_DIR": tmp_path / "local",
        }
        defaults = {name: str(path) for name, path in places.items()} | {"PIXPOD_PRELOAD": "true"}
        made.append(Boot(defaults | environ))
        return made[-1]

    yield make
    for each in made:
        each.stop()


ROLE = {"PIXPOD_S3_BUCKET": "pictures"}

SETTINGS = {
    "bad value": (
        {"PIXPOD_DEVICE": "gpu"},
        "PIXPOD_DEVICE: expected one of auto, cuda, cpu, got 'gpu'",
    ),
    "unknown model": ({"PIXPOD_MODELS": "sd16"}, "'sd16' is not in the catalog, which has flux"),
    "nothing to serve": ({}, "holds no models, nor does a volume: bake some"),
    "no such catalog": ({"PIXPOD_CATALOG": "/absent.toml"}, "PIXPOD_CATALOG='/absent.toml': "),
    "no secret for keys": (ROLE, "PIXPOD_KEY_SECRET: expected a random string"),
    "GPU not allowed": (
        {"PIXPOD_DEVICE": "cpu", "PIXPOD_MODELS": "sdxl"},
        "PIXPOD_DEVICE: expected cuda or auto for sdxl, got 'cpu'",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_cannot_be_used_are_the_reply(boot, case):
    environ, said = SETTINGS[case]
    text = boot(**environ).refusal()
    assert text.startswith("invalid_settings: ")
    assert said in text


def test_catalog_entry_that_is_not_complete_is_the_reply(boot, tmp_path):
    catalog = tmp_path / "catalog.toml"
    catalog.write_text('[mine]\nfamily = "sdxl"\n')
    text = boot(PIXPOD_CATALOG=str(catalog)).refusal()
    assert text.startswith(f"invalid_settings: {catalog}: model 'mine': licence: ")


def test_manifest_of_another_format_is_the_reply(boot, tmp_path):
    broken_copy("manifest of format 1", tmp_path / "weights")
    text = boot().refusal()
    assert text.startswith("invalid_settings: ")
    assert "format 1: expected 2; bake again" in text


def test_licence_that_was_not_accepted_leaves_other_models_alone(boot, tmp_path):
    copy_weights(tmp_path / "weights", "sdxl-tiny", MODEL)
    catalog = write_catalog(tmp_path / "catalog", "sdxl-tiny", licence_must_be_accepted="true")
    worker = boot(PIXPOD_CATALOG=str(catalog))
    text = worker.refusal("sdxl-tiny")
    assert text.startswith("licence_not_accepted: sdxl-tiny has the licence MIT: read it, then")
    assert "images" in worker.reply(MODEL)


def test_file_that_is_missing_from_the_image_is_the_reply(boot, tmp_path):
    broken_copy("missing file", tmp_path / "weights")
    text = boot().refusal()
    assert text.startswith(f"model_unavailable: {MODEL}: ")
    assert f"{UNET} is in manifest.toml, but missing from the image: build the image" in text


def test_folder_of_another_pipeline_is_the_reply(boot, tmp_path):
    weights = copy_weights(tmp_path / "weights", MODEL, "sdxl-tiny")
    other = read_manifest(weights)["sdxl-tiny"]
    write_manifest(weights, replace(other, name=MODEL))
    text = boot().refusal()
    assert text.startswith("model_unavailable: ")
    assert "expected a StableDiffusionPipeline, got a StableDiffusionXLPipeline" in text


def test_model_that_is_nowhere_is_the_reply(boot):
    text = boot(PIXPOD_MODELS=MODEL).refusal()
    assert text.startswith(f"model_unavailable: {MODEL} has no weights in this deployment: bake")


def test_precision_that_the_model_cannot_have_is_the_reply(boot, tmp_path):
    copy_weights(tmp_path / "weights")
    text = boot(PIXPOD_PRECISION=f"{MODEL}=float8_dynamic").refusal()
    reason = f"{MODEL} cannot run in float8_dynamic: its family is not quantized"
    assert text == f"model_unavailable: {reason}"


def test_precision_that_was_not_baked_is_the_reply(boot, tmp_path):
    weights = copy_weights(tmp_path / "weights", "flux-tiny")
    entry = read_manifest(weights)["flux-tiny"]
    write_manifest(weights, replace(entry, precision=Precision.FLOAT8_DYNAMIC))
    text = boot(PIXPOD_PRECISION="bfloat16").refusal("flux-tiny")
    assert text.startswith("model_unavailable: flux-tiny is baked in float8_dynamic and cannot")


def test_gpu_without_float8_is_named(monkeypatch):
    """The facts that torch reports of a GPU are stubbed."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    facts = SimpleNamespace(total_memory=48 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    hardware, flux = find_hardware(torch.device("cuda")), load_catalog()["flux-dev"]
    with pytest.raises(DeviceUnavailable, match=r"8\.9 or higher.* and this one is Ampere"):
        choose_precision(flux, CheckpointInfo(), hardware, requested=Precision.FLOAT8_DYNAMIC)
    assert choose_precision(flux, CheckpointInfo(), hardware).precision is Precision.BFLOAT16


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flipped", "short", "missing"])
def test_volume_that_is_damaged_is_the_reply(boot, tmp_path, damage):
    """All hosts share it, so that none of them is to blame."""
    damage(copy_weights(tmp_path / "volume") / MODEL / UNET)
    text = boot().refusal()
    assert text.startswith("model_unavailable: ")
    assert text.endswith("to the volume again (scripts/bake)")


def test_volume_without_a_list_of_files_is_the_reply(boot, tmp_path):
    change_entry(copy_weights(tmp_path / "volume"), files=())
    text = boot().refusal()
    assert text.startswith(f"model_unavailable: {MODEL}: its entry in ")
    assert "does not list all files" in text


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no file system that nobody writes")
def test_read_only_directory_for_copies_is_the_reply(boot, tmp_path):
    copy_weights(tmp_path / "volume")
    text = boot(PIXPOD_LOCAL_DIR="/sys/pixpod").refusal()
    assert text.startswith("model_unavailable: ")
    assert text.endswith("name a directory that the worker may write")


EARLY = {
    "short file": "weights_unreadable: .*expected .* bytes, got",
    "flipped byte": "weights_unreadable: .*not what was baked: this copy is damaged",
    "flipped byte in a tokenizer": "weights_unreadable: .*tokenizer.json: not what was baked",
    "damaged index": "weights_unreadable: .*cannot be read as JSON",
    "larger than memory": "out_of_memory: .*no room to map 4398046511104 bytes",
}


@pytest.mark.parametrize("case", EARLY)
def test_bad_copy_is_found_before_a_job_is_taken(boot, tmp_path, case):
    broken_copy(case, tmp_path / "weights")
    with pytest.raises(WorkerError, match=EARLY[case]) as found:
        boot().check_host()
    assert found.value.fault is Fault.HOST


def test_bad_copy_behind_a_refused_model_is_found_before_a_job_is_taken(boot, tmp_path):
    broken_copy("flipped byte", tmp_path / "weights")
    catalog = write_catalog(tmp_path / "catalog", "sdxl-tiny", licence_must_be_accepted="true")
    environ = {"PIXPOD_CATALOG": str(catalog), "PIXPOD_MODELS": f"sdxl-tiny,{MODEL}"}
    with pytest.raises(WorkerError, match=r"^weights_unreadable: "):
        boot(**environ).check_host()


LATE = {
    "unlisted header": "weights_unreadable",
    "class of nobody": "internal_error",
}


@pytest.mark.parametrize("case", LATE)
def test_fault_that_only_loading_finds_is_reported_before_the_job_is_answered(boot, tmp_path, case):
    broken_copy(case, tmp_path / "weights")
    worker = boot()
    worker.check_host()
    reply = worker.reply()
    assert [error.code for error in worker.faults][:1] == [LATE[case]]
    assert reply["error"].startswith(f"{LATE[case]}: ")


def test_disk_that_fails_when_settings_are_read_is_the_hosts(boot, tmp_path):
    """A link to itself stands in for it: the system can look at neither."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / MANIFEST).symlink_to(MANIFEST)
    with pytest.raises(WorkerError, match=r"^weights_unreadable: .*manifest\.toml: Too many"):
        boot().check_host()


def test_half_filled_cache_of_the_platform_is_the_hosts(boot, tmp_path):
    """With the blob that is still being written, as the platform's download leaves it."""
    catalog = write_catalog(tmp_path / "catalog", repository=f'"someone/{MODEL}"')
    files = files_of(load_catalog()[MODEL])
    snapshot = write_cached(tmp_path / "hub", f"someone/{MODEL}", "a" * 40, files)
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").resolve().unlink()
    (snapshot.parents[1] / "blobs" / f"{'b' * 64}.incomplete").touch()
    worker = boot(PIXPOD_CATALOG=str(catalog), PIXPOD_MODELS=MODEL)
    with pytest.raises(WorkerError, match=r"^weights_unreadable: .*not finished its download"):
        worker.check_host()


def test_gpu_that_does_not_compute_is_a_fault_of_the_host(monkeypatch):
    """A GPU that torch sees, and that fails at its first kernel, is stubbed."""

    def fail(*size, device):
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(DeviceUnavailable, match=r"^device_unavailable: cuda does not compute"):
        prepare_device("auto")


def test_gpu_that_is_too_small_is_a_fault_of_the_host(boot, tmp_path, monkeypatch):
    """torch's error for a full GPU is stubbed."""

    def fail(*given):
        raise torch.OutOfMemoryError("tried to allocate 24 GiB")

    monkeypatch.setattr(components, "file_bytes", fail)
    copy_weights(tmp_path / "weights")
    worker = boot()
    assert worker.reply()["error"].startswith(f"out_of_memory: {MODEL} in float32 does not fit on")
    assert [error.code for error in worker.faults] == ["out_of_memory"]


def test_disk_that_fails_under_a_mapped_file_ends_the_process(tmp_path):
    """A file that is cut while it is mapped stands in for it: the kernel has no bytes to give."""
    code = (
        "import os, sys; from pathlib import Path; from pixpod.weights.prefetch import MappedFile\n"
        "import faulthandler; faulthandler.enable()\n"
        "path = Path(sys.argv[1]); path.write_bytes(bytes(1 << 16))\n"
        "file = MappedFile(path, 1 << 16); os.truncate(path, 0)\n"
        "file.bytes[-1]; print('read')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "file"],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "")
    assert done.stderr.startswith("Fatal Python error: Bus error")


# --- as processes on the emulator ------------------------------------------------------------

SECRET = "tamarind-secret-access-key"
STARVED = Behaviour(ping_interval_s=1.0, heartbeat_timeout_s=120.0)
"""All these workers start at once on few cores."""


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What became of the first worker of an endpoint and of its only job."""

    status: dict
    details: dict
    reason: str
    num_results: int


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("platform")


@pytest.fixture(scope="module")
def fates(tmp_path_factory, state_dir) -> Iterator[dict[str, Fate]]:
    """By endpoint. Each has one worker, which boots from something broken, and one job."""
    folder = tmp_path_factory.mktemp("faults")
    files = files_of(load_catalog()[MODEL])
    gated = Repository(revision="a" * 40, files=files, is_gated=True)
    with running_hub({"someone/gated": gated}) as hub:
        environs = _environs(folder, hub.url)
        each = [
            settings_for(
                ROOT / "handler.py",
                state_dir,
                behaviour=STARVED,
                endpoint_id=name,
                workers_max=1,
                idle_timeout_s=600,
                env={"OMP_NUM_THREADS": "1", **environ},
            )
            for name, environ in environs.items()
        ]
        endpoints = tuple(settings.endpoints[0] for settings in each)
        with running_emulator(replace(each[0], endpoints=endpoints)) as platform:
            yield dict(_collect(platform, tuple(environs)))


def _environs(folder: Path, hub_url: str) -> dict[str, dict[str, str]]:
    catalog = folder / "catalog.toml"
    catalog.write_text("[mine\n")
    (folder / DRIVER).touch()
    full = copy_weights(folder / "volume")
    say_larger(full, UNET, 1 << 60)
    places = {"repository": '"someone/gated"', "revision": f'"{"a" * 40}"'}
    gated = write_catalog(folder / "gated", **places)
    licence = write_catalog(folder / "licence", licence_must_be_accepted="true")
    broken = {
        name: {"PIXPOD_WEIGHTS_DIR": str(broken_copy(name, folder / name))}
        for name in ("manifest without TOML", "short file", "flipped byte", "larger than memory")
    }
    return broken | {
        "catalog without TOML": {"PIXPOD_CATALOG": str(catalog)},
        "half a pair of keys": {
            "PIXPOD_S3_BUCKET": "pictures",
            "PIXPOD_S3_SECRET_ACCESS_KEY": SECRET,
        },
        "licence": {"PIXPOD_CATALOG": str(licence), "PIXPOD_MODELS": MODEL},
        "gated": {
            "PIXPOD_MODELS": MODEL,
            "PIXPOD_CATALOG": str(gated),
            "PIXPOD_WEIGHTS_DIR": str(folder / "nothing"),
            "PIXPOD_ALLOW_HUB": "true",
            "PIXPOD_LOCAL_DIR": str(folder / "downloads"),
            "HF_ENDPOINT": hub_url,
            "HF_TOKEN": "hf_of_another_account",
        },
        "no driver": {"PIXPOD_MODELS": "sdxl", "LD_LIBRARY_PATH": str(folder)},
        "full disk": {
            "PIXPOD_WEIGHTS_DIR": str(folder / "nothing"),
            "PIXPOD_VOLUME_DIR": str(full),
            "PIXPOD_LOCAL_DIR": str(folder / "copies"),
        },
    }


REFUSED = {
    "manifest without TOML": ("invalid_settings", "manifest.toml: Expected ']'"),
    "catalog without TOML": ("invalid_settings", "PIXPOD_CATALOG="),
    "half a pair of keys": (
        "invalid_settings",
        "PIXPOD_S3_SECRET_ACCESS_KEY: expected both or neither",
    ),
    "licence": ("licence_not_accepted", "PIXPOD_ACCEPT_LICENCES"),
    "gated": ("model_unavailable", "it is gated, and the token has no access: accept its"),
}

LEFT = {
    "short file": ("weights_unreadable", "bytes, got"),
    "flipped byte": ("weights_unreadable", "not what was baked"),
    "larger than memory": ("out_of_memory", "no room to map"),
    "no driver": ("device_unavailable", f"no CUDA driver on this host: {DRIVER} cannot be loaded"),
    "full disk": ("disk_full", "needs 11529215046"),
}


def _collect(platform: RunningEmulator, names: tuple[str, ...]) -> Iterator[tuple[str, Fate]]:
    """Jobs of workers that leave are looked at and cancelled, so that no worker is replaced."""
    ids = {name: submit(platform, {"input": job()}, endpoint_id=name) for name in names}
    for name, job_id in ids.items():
        platform.wait_until(partial(_is_decided, name), LIMIT_S)
        status = call(platform, f"/status/{job_id}", endpoint_id=name)
        details = platform.job(job_id)
        endpoint = platform.state()["endpoints"][name]
        if status["status"] == "IN_QUEUE":
            call(platform, f"/cancel/{job_id}", {}, endpoint_id=name)
        first = min(
            [*endpoint["workers"], *endpoint["retired"]], key=lambda each: each["created_at"]
        )
        yield (
            name,
            Fate(
                status=status,
                details=details,
                reason=first["reason"] or "",
                num_results=first["num_results"],
            ),
        )


def _is_decided(name: str, state: dict) -> bool:
    endpoint = state["endpoints"][name]
    return bool(endpoint["failures_in_a_row"] or endpoint["jobs"].get("FAILED"))


@pytest.mark.parametrize("case", REFUSED)
def test_fault_of_the_deployment_is_the_reply_of_a_real_worker(fates, case):
    code, said = REFUSED[case]
    fate = fates[case]
    assert fate.status["status"] == "FAILED"
    assert fate.status["error"].startswith(f"{code}: ")
    assert said in fate.status["error"]
    assert fate.details["executions"] == 1
    assert fate.num_results == 1
    assert fate.reason == "", "the worker serves on"


@pytest.mark.parametrize("case", LEFT)
def test_fault_of_the_host_takes_no_job_from_the_queue(fates, case):
    code, said = LEFT[case]
    fate = fates[case]
    assert fate.reason.startswith("fitness check host: ")
    report, _, ending = fate.reason.partition(": exited with ")
    assert f"{code}: " in report
    assert said in report
    assert ending.startswith("1; the end of its log:")
    assert fate.status["status"] == "IN_QUEUE"
    assert fate.details["executions"] == 0
    assert fate.num_results == 0


def test_no_secret_and_no_prompt_is_shown(fates, state_dir):
    logs = [path.read_text() for path in (state_dir / "logs").glob("*.log")]
    assert sum("set up wrongly" in text for text in logs) >= 3, "these are the workers' logs"
    shown = "".join([*logs, str(fates)])
    for planted in (SECRET, "hf_of_another_account", TOKEN, "zanzibar"):
        assert planted not in shown


# --- the table -------------------------------------------------------------------------------

CODES = {
    kind.code: kind.fault
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, WorkerError) and hasattr(kind, "code")
}

CASES: Mapping[str, Collection[str]] = {
    "test_settings_that_cannot_be_used_are_the_reply": SETTINGS,
    "test_bad_copy_is_found_before_a_job_is_taken": EARLY,
    "test_fault_that_only_loading_finds_is_reported_before_the_job_is_answered": LATE,
    "test_fault_of_the_deployment_is_the_reply_of_a_real_worker": REFUSED,
    "test_fault_of_the_host_takes_no_job_from_the_queue": LEFT,
}


def rows() -> Iterator[tuple[str, ...]]:
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = tuple(cell.strip() for cell in line.split("|")[1:-1])
        if len(cells) == 5 and cells[0] != "fault" and set(line) - set("|- "):
            yield cells


ROWS = tuple(rows())


def functions(path: Path) -> set[str]:
    return set(re.findall(r"^ *def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def test_table_is_found():
    assert len(ROWS) >= 50


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:60] for row in ROWS])
def test_row_agrees_with_the_errors_and_names_a_test_that_there_is(row):
    _, fault, what_happens, advice, test = row
    assert advice
    named = set(re.findall("`([a-z_0-9]+)`", what_happens)) & CODES.keys()
    assert len(named) <= 1
    assert {CODES[code] for code in named} <= {Fault(fault)}
    assert named or re.search("^served|SIGBUS", what_happens)
    file, _, name = test.strip("`").rpartition("::")
    path = ROOT / "tests" / file if file else Path(__file__)
    function, _, case = name.rstrip("]").partition("[")
    assert function in functions(path)
    assert not case or case in CASES[function]


def test_each_case_has_its_row():
    named = {row[4].strip("`") for row in ROWS}
    for function, cases in CASES.items():
        for case in cases:
            assert f"{function}[{case}]" in named, "the table forgets it"


def test_file_list_of_the_source_is_whole():
    """Else the copies that these tests break would not be checked at all."""
    entry: ManifestEntry = read_manifest(SOURCE_WEIGHTS_DIR)[MODEL]
    assert any(file.path == UNET and file.chunks for file in entry.files)

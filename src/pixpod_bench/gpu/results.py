"""Measured results as values, and the journal of JSON lines that keeps them between calls."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians over the repeats of one scenario; times in milliseconds for the whole batch.

    `spread_percent` is (slowest - fastest) / median of the total. `first_ms` is the first batch,
    which compiles; `graphs` is the number of graphs compiled for it, `late_graphs` that of graphs
    compiled during the repeats, which should be 0. None: not known for this device, size or side.
    """

    side: str
    model: str
    precision: str
    mode: str
    size_px: int
    batch_size: int
    num_inference_steps: int
    text_tokens: int | None
    has_guidance: bool
    repeats: int
    float8_layers: int
    build_ms: float
    first_ms: float
    text_encode_ms: float
    denoise_ms: float
    step_ms: float
    decode_ms: float
    total_ms: float
    p95_ms: float
    spread_percent: float
    images_per_second: float
    same_pixels: bool
    graphs: int
    late_graphs: int
    weights_bytes: int | None
    peak_bytes: int | None
    teraflop_per_s: float | None
    floor_percent: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """The peak memory of mixed requests, and the time for which they waited for components.

    Bytes: `allocated` and `reserved` as torch counts, `driver` of the whole GPU as its driver
    shows it, read every 20 ms; `end_reserved` after the last request; `host_peak` is the resident
    memory of the process. `stock_bytes` is what torch allocates at most with both stock pipelines
    on the GPU and one image of each; None where a limit leaves no room for them. All are None on
    a CPU but for `host_peak`.
    """

    models: tuple[str, ...]
    limit_gib: float | None
    num_requests: int
    num_images: int
    seconds: float
    onload_ms: float
    num_onloads: int
    allocated_bytes: int | None
    reserved_bytes: int | None
    driver_bytes: int | None
    end_reserved_bytes: int | None
    host_peak_bytes: int
    stock_bytes: int | None
    warnings: tuple[str, ...]

    @property
    def stock_ratio(self) -> float | None:
        """Memory of stock pipelines over that of pixpod."""
        if self.stock_bytes is None or not self.allocated_bytes:
            return None
        return self.stock_bytes / self.allocated_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """Requests at one load; seconds are from arrival to images in host memory.

    `busy_percent` is the requests' own device time over the time that all of them took.
    """

    is_batching: bool
    load: float
    requests_per_s: float
    images_per_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    busy_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRow:
    """Points of one deployment. `capacity_per_s` is the rate of pixpod's engine for requests of all
    kinds one by one, `stock_capacity_per_s` that of eager stock pipelines.
    """

    num_requests: int
    capacity_per_s: float
    stock_capacity_per_s: float
    points: tuple[LoadPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StackRow:
    """The time of one batch with LoRAs, nets or a given image; seconds are medians.

    `first_s` is the first batch, which compiles; `swap_s` is what a batch takes longer whose LoRAs
    have never been used, None without LoRAs. `is_alone`: the rows ran one after the other.
    """

    model: str
    precision: str
    size_px: int
    batch_size: int
    num_inference_steps: int
    stack: str
    is_alone: bool
    repeats: int
    seconds: float
    spread_percent: float
    first_s: float
    swap_s: float | None
    graphs: int
    late_graphs: int
    peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TestRun:
    """The outcome of the tests marked `gpu`."""

    exit_code: int
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A scenario without figures, and the reason."""

    reason: str


Result = Row | MemoryRow | LoadRow | StackRow | TestRun | Failure

_KINDS: Mapping[str, type[Result]] = {
    "images": Row,
    "memory": MemoryRow,
    "load": LoadRow,
    "stacks": StackRow,
    "tests": TestRun,
    "failure": Failure,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A scenario and its result."""

    slice: str
    scenario: str
    result: Result


class OtherMachine(Exception):
    """A journal holds figures of another GPU or another torch; they must not be mixed."""


class Journal:
    """Results, each written at once; a later call continues where this one ended.

    A scenario that was begun twice and never ended has crashed its process, and counts as failed.
    """

    def __init__(self, path: Path) -> None:
        """Read the file if it exists; `machine` is empty if it does not."""
        self._path = path
        self._results: dict[tuple[str, str], Result] = {}
        self._begun: dict[tuple[str, str], int] = {}
        self.machine: Mapping[str, object] = {}
        if path.exists():
            self._read()

    @classmethod
    def continued(cls, path: Path, machine: Mapping[str, object]) -> "Journal":
        """Open a journal to add to. Raises OtherMachine for another device or torch."""
        journal = cls(path)
        journal._end_line()
        there = journal.machine
        if not there:
            journal.machine = machine
            journal._write({"machine": dict(machine)})
        elif any(there[name] != machine[name] for name in ("device", "torch")):
            raise OtherMachine(
                f"{path}: expected {machine['device']} with torch {machine['torch']}, got results "
                f"of {there['device']} with {there['torch']}: leave out --resume, or choose "
                "another --state"
            )
        return journal

    def has(self, slice_name: str, scenario: str) -> bool:
        return (slice_name, scenario) in self._results

    def begin(self, slice_name: str, scenario: str) -> bool:
        """Note that a scenario is measured now; return False if it has crashed two processes."""
        key = (slice_name, scenario)
        if self._begun.get(key, 0) >= 2:
            self.add(slice_name, scenario, Failure(reason="the process ended twice while it ran"))
            return False
        self._begun[key] = self._begun.get(key, 0) + 1
        self._write({"slice": slice_name, "scenario": scenario, "begun": True})
        return True

    def add(self, slice_name: str, scenario: str, result: Result) -> None:
        self._results[slice_name, scenario] = result
        kind = _NAMES[type(result)]
        self._write({"slice": slice_name, "scenario": scenario, kind: asdict(result)})

    def entries(self) -> Iterator[Entry]:
        """Return all results in the order in which they were added."""
        for (slice_name, scenario), result in self._results.items():
            yield Entry(slice=slice_name, scenario=scenario, result=result)

    def _read(self) -> None:
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the incomplete line of a call that was interrupted
                continue
            if "machine" in entry:
                self.machine = entry["machine"]
                continue
            key = (entry["slice"], entry["scenario"])
            if "begun" in entry:
                self._begun[key] = self._begun.get(key, 0) + 1
            for name, kind in _KINDS.items():
                if name in entry:
                    self._results[key] = _parse(kind, entry[name])

    def _end_line(self) -> None:
        """End the incomplete line of a call that was interrupted."""
        if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def _write(self, entry: Mapping[str, object]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _parse(kind: type[Result], values: dict[str, object]) -> Result:
    """Reverse `asdict`; lists of JSON become tuples."""
    parsed = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    if kind is LoadRow:
        points = values["points"]
        assert isinstance(points, list)
        parsed["points"] = tuple(LoadPoint(**point) for point in points)
    return kind(**parsed)  # type: ignore[arg-type] # JSON has no types; names are the fields'

"""What was measured, as values, and the file of JSON lines that keeps them between calls."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians over the repeats of one scenario; times in milliseconds for the whole batch.

    `spread_percent` is (slowest - fastest) / median of the total. `first_ms` is the first image,
    which compiles; `graphs` is what was compiled for it, `late_graphs` what the repeats compiled
    on top, which should be 0. None: not known for this device, size or side.
    """

    side: str
    model: str
    precision: str
    mode: str
    attention: str | None
    recipe: str
    size_px: int
    batch: int
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
class VaeRow:
    """Median of decoding one batch of latents."""

    model: str
    precision: str
    channels_last: bool
    compiled: bool
    size_px: int
    batch: int
    repeats: int
    first_ms: float
    decode_ms: float
    spread_percent: float
    peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapRow:
    """Batches in a row, milliseconds for each: decoded before the next is denoised, and beside it.

    `gain` is the former over the latter; `decode_ms` is of one decoding with nothing beside.
    """

    model: str
    precision: str
    mode: str
    size_px: int
    batch: int
    num_inference_steps: int
    num_batches: int
    repeats: int
    decode_ms: float
    in_turns_ms: float
    beside_ms: float
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """The most memory that mixed requests took, and what they waited for components.

    Bytes: `allocated` and `reserved` as torch counts, `driver` of the whole card as its driver
    shows it, looked at all the time; `end_reserved` and `end_allocated` after the last request.
    `host_peak` is the process's own resident memory. None on a CPU.
    """

    models: tuple[str, ...]
    limit_gib: float | None
    num_requests: int
    num_images: int
    seconds: float
    swap_ms: float
    num_swaps: int
    allocated_bytes: int | None
    reserved_bytes: int | None
    driver_bytes: int | None
    end_allocated_bytes: int | None
    end_reserved_bytes: int | None
    host_peak_bytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """What requests met at one load; seconds from arrival to images in host memory.

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
    """`capacity_per_s` is how many requests of all kinds can be drawn one by one."""

    num_requests: int
    capacity_per_s: float
    points: tuple[LoadPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A scenario without figures, and why."""

    reason: str


Result = Row | VaeRow | OverlapRow | MemoryRow | LoadRow | Failure

_KINDS: Mapping[str, type[Result]] = {
    "drawing": Row,
    "vae": VaeRow,
    "overlap": OverlapRow,
    "memory": MemoryRow,
    "load": LoadRow,
    "failure": Failure,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A scenario and what came of it."""

    slice: str
    scenario: str
    result: Result


class OtherMachine(Exception):
    """A journal holds figures of another card, or another torch: they must not be mixed."""


class Journal:
    """Results, each written as soon as it is there; a later call goes on where this one ended.

    A scenario that was begun twice and never ended took its process along, and counts as failed.
    """

    def __init__(self, path: Path) -> None:
        """What the file holds, if it is there; `machine` is empty if it is not."""
        self._path = path
        self._results: dict[tuple[str, str], Result] = {}
        self._begun: dict[tuple[str, str], int] = {}
        self.machine: Mapping[str, object] = {}
        if path.exists():
            self._read()

    @classmethod
    def continued(cls, path: Path, machine: Mapping[str, object]) -> "Journal":
        """To be added to on this machine. Raises OtherMachine for another device or torch."""
        journal = cls(path)
        journal._end_line()
        there = journal.machine
        if not there:
            journal.machine = machine
            journal._write({"machine": dict(machine)})
        elif any(there[name] != machine[name] for name in ("device", "torch")):
            raise OtherMachine(
                f"{path}: was measured on {there['device']} with torch {there['torch']}, and this "
                f"is {machine['device']} with {machine['torch']}: choose another --out, or leave "
                "out --resume"
            )
        return journal

    def has(self, slice_name: str, scenario: str) -> bool:
        return (slice_name, scenario) in self._results

    def begin(self, slice_name: str, scenario: str) -> bool:
        """Note that a scenario is measured now; false if it has taken two processes along."""
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
        """All results, in the order in which they came."""
        for (slice_name, scenario), result in self._results.items():
            yield Entry(slice=slice_name, scenario=scenario, result=result)

    def _read(self) -> None:
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the line in which a call was cut off
                continue
            if "machine" in entry:
                self.machine = entry["machine"]
                continue
            key = (entry["slice"], entry["scenario"])
            if "begun" in entry:
                self._begun[key] = self._begun.get(key, 0) + 1
            for name, kind in _KINDS.items():
                if name in entry:
                    self._results[key] = parse_result(kind, entry[name])

    def _end_line(self) -> None:
        """Of a call that was cut off within a line."""
        if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def _write(self, entry: Mapping[str, object]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def parse_result(kind: type[Result], values: dict[str, object]) -> Result:
    """The reverse of `asdict`; what is a tuple comes back as one."""
    parsed = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    if kind is LoadRow:
        points = values["points"]
        assert isinstance(points, list | tuple)
        parsed["points"] = tuple(LoadPoint(**point) for point in points)
    return kind(**parsed)  # type: ignore[arg-type] # JSON has no types; names are the fields'

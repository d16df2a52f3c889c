"""Reading ahead: order, checks, sharing, and what is said of a damaged file."""

import hashlib
import threading

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pixpod.errors import WeightsUnreadable
from pixpod.weights import prefetch as module
from pixpod.weights.manifest import WeightFile
from pixpod.weights.prefetch import Prefetch, Verify

CHUNK = 4096
"""Small enough that a test's files have many; a multiple of the page size."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", CHUNK)


@pytest.fixture
def make_prefetch():
    made = []

    def make(**given):
        made.append(Prefetch(**{"threads": 3, "verify": Verify.CHUNKS, **given}))
        return made[-1]

    yield make
    for prefetch in made:
        prefetch.stop()


def describe(path, data, *, has_chunks=True):
    path.write_bytes(data)
    cut = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    return WeightFile(
        path=path.name,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        chunks=tuple(xxhash.xxh3_64_hexdigest(chunk) for chunk in cut) if has_chunks else (),
    )


def flip(path, position):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_file_is_mapped_as_it_is(tmp_path, make_prefetch):
    path = tmp_path / "weights"
    data = bytes(range(256)) * 100
    prefetch = make_prefetch()
    prefetch.add("model", {path: describe(path, data)})
    assert prefetch.wait(path).bytes == data


def test_ranges_cover_the_file_in_order(tmp_path, make_prefetch):
    path = tmp_path / "weights"
    prefetch = make_prefetch()
    prefetch.add("model", {path: describe(path, b"x" * (3 * CHUNK + 5))})
    assert list(prefetch.ranges(path)) == [
        (0, CHUNK),
        (CHUNK, CHUNK),
        (2 * CHUNK, CHUNK),
        (3 * CHUNK, 5),
    ]


def test_empty_file_is_there_at_once(tmp_path, make_prefetch):
    path = tmp_path / "empty"
    prefetch = make_prefetch()
    prefetch.add("model", {path: describe(path, b"")})
    assert not prefetch.wait(path).bytes


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 5 * CHUNK), share=st.floats(0, 1, exclude_max=True))
def test_any_flipped_bit_is_found(tmp_path_factory, size, share):
    path = tmp_path_factory.mktemp("flip") / "weights"
    position = int(size * share)
    file = describe(path, b"\x5a" * size)
    flip(path, position)
    prefetch = Prefetch(threads=2, verify=Verify.CHUNKS)
    prefetch.add("model", {path: file})
    with pytest.raises(WeightsUnreadable, match="damaged") as caught:
        prefetch.wait(path)
    with pytest.raises(WeightsUnreadable) as again:
        prefetch.wait(path)
    prefetch.stop()
    begin = position // CHUNK * CHUNK
    assert f"{path}: bytes {begin} to {min(begin + CHUNK, size)} " in str(caught.value)
    assert again.value is caught.value


@pytest.mark.parametrize(
    ("verify", "has_chunks", "is_found"),
    [
        (Verify.SIZES, True, False),
        (Verify.SIZES, False, False),
        (Verify.CHUNKS, True, True),
        (Verify.CHUNKS, False, False),
        (Verify.FULL, True, True),
        (Verify.FULL, False, True),
    ],
)
def test_what_each_mode_checks(tmp_path, make_prefetch, verify, has_chunks, is_found):
    path = tmp_path / "weights"
    file = describe(path, b"x" * 3 * CHUNK, has_chunks=has_chunks)
    flip(path, 2 * CHUNK)
    prefetch = make_prefetch(verify=verify)
    prefetch.add("model", {path: file})
    if not is_found:
        prefetch.wait(path)
        return
    with pytest.raises(WeightsUnreadable):
        prefetch.wait(path)


def test_small_file_without_chunks_is_checked_as_a_whole(tmp_path, make_prefetch):
    path = tmp_path / "weights"
    file = describe(path, b"x" * CHUNK, has_chunks=False)
    flip(path, CHUNK - 1)
    prefetch = make_prefetch()
    prefetch.add("model", {path: file})
    with pytest.raises(WeightsUnreadable):
        prefetch.wait(path)


def test_full_notices_what_the_fast_checksums_were_made_of_too(tmp_path, make_prefetch):
    path = tmp_path / "weights"
    honest = describe(path, b"x" * CHUNK)
    forged = describe(path, b"y" * CHUNK)
    file = WeightFile(path=path.name, size_bytes=CHUNK, sha256=honest.sha256, chunks=forged.chunks)
    prefetch = make_prefetch(verify=Verify.FULL)
    prefetch.add("model", {path: file})
    with pytest.raises(WeightsUnreadable):
        prefetch.wait(path)


def test_unlisted_file_is_read_without_a_check(tmp_path, make_prefetch):
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    prefetch = make_prefetch()
    prefetch.add("model", {path: WeightFile(path="weights", size_bytes=3, sha256="")})
    assert prefetch.wait(path).bytes == b"abc"


@pytest.mark.parametrize("size", [0, 2, 4])
def test_other_size_is_named_before_anything_is_read(tmp_path, make_prefetch, size):
    path = tmp_path / "weights"
    file = describe(path, b"abc")
    path.write_bytes(b"x" * size)
    with pytest.raises(WeightsUnreadable, match=f"expected 3 bytes, got {size}"):
        make_prefetch().add("model", {path: file})


def test_missing_file_is_named(tmp_path, make_prefetch):
    path = tmp_path / "weights"
    file = describe(path, b"abc")
    path.unlink()
    with pytest.raises(WeightsUnreadable, match="weights: No such file"):
        make_prefetch().add("model", {path: file})


def test_damage_ends_all_waits(tmp_path, make_prefetch):
    good, bad = tmp_path / "good", tmp_path / "bad"
    files = {good: describe(good, b"x" * 50 * CHUNK), bad: describe(bad, b"y")}
    flip(bad, 0)
    prefetch = make_prefetch(threads=1)
    prefetch.add("bad", {bad: files[bad]})
    prefetch.add("good", {good: files[good]})
    with pytest.raises(WeightsUnreadable, match="bad: "):
        prefetch.wait(good)


def test_file_with_several_names_is_read_once(tmp_path, make_prefetch):
    first, hard, soft = (tmp_path / name for name in ("first", "hard", "soft"))
    file = describe(first, b"x" * 3 * CHUNK)
    hard.hardlink_to(first)
    soft.symlink_to(first)
    prefetch = make_prefetch()
    for model, path in (("a", first), ("b", hard), ("c", soft)):
        prefetch.add(model, {path: file})
    assert prefetch.wait(hard) is prefetch.wait(soft) is prefetch.wait(first)
    assert [span.subject for span in prefetch.spans()] == [f"a/{tmp_path.name}/first"]


def test_shared_file_is_read_once(tmp_path, make_prefetch):
    path = tmp_path / "weights"
    file = describe(path, b"x" * CHUNK)
    (tmp_path / "link").symlink_to(path)
    prefetch = make_prefetch()
    prefetch.add("first", {path: file})
    prefetch.add("second", {tmp_path / "link": file})
    assert prefetch.wait(tmp_path / "link") is prefetch.wait(path)
    assert [span.subject for span in prefetch.spans()] == [f"first/{tmp_path.name}/weights"]


class SlowFirst:
    """A clock that holds back the first thread that asks, until it may go on."""

    def __init__(self):
        self.is_there = threading.Event()
        self.may_go_on = threading.Event()
        self.time_s = 0.0

    def __call__(self):
        self.time_s += 1
        if self.time_s == 1:
            self.is_there.set()
            assert self.may_go_on.wait(timeout=30)
        return self.time_s


@pytest.mark.parametrize(("preferred", "order"), [(None, "abc"), ("c", "acb"), ("b", "abc")])
def test_models_are_read_in_their_order_unless_one_is_preferred(
    tmp_path, make_prefetch, preferred, order
):
    """One thread, stopped in the first piece of `a` while the others are being added."""
    clock = SlowFirst()
    prefetch = make_prefetch(threads=1, clock=clock)
    paths = {name: tmp_path / name for name in "abc"}
    for name, path in paths.items():
        prefetch.add(name, {path: describe(path, b"x")})
        assert clock.is_there.wait(timeout=30)
    if preferred:
        prefetch.prefer(preferred)
    clock.may_go_on.set()
    for path in paths.values():
        prefetch.wait(path)
    assert "".join(span.subject[0] for span in prefetch.spans()) == order


def test_preferring_what_is_unknown_changes_nothing(make_prefetch):
    make_prefetch().prefer("unknown")


def test_stop_ends_a_wait(tmp_path, make_prefetch):
    clock = SlowFirst()
    prefetch = make_prefetch(threads=1, clock=clock)
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        prefetch.add("model", {path: describe(path, b"x")})
    found = []

    def wait():
        try:
            prefetch.wait(second)
        except WeightsUnreadable as error:
            found.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    stopping = threading.Thread(target=prefetch.stop)
    stopping.start()
    waiting.join(timeout=30)
    clock.may_go_on.set()
    stopping.join(timeout=30)
    assert len(found) == 1
    assert "stopping" in str(found[0])


def test_views_are_private(tmp_path, make_prefetch):
    path = tmp_path / "weights"
    prefetch = make_prefetch()
    prefetch.add("model", {path: describe(path, b"abc")})
    prefetch.wait(path).bytes[0] = 0
    assert path.read_bytes() == b"abc"

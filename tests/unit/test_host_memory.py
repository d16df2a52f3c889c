"""What is left of a host's memory, as Linux tells it in files."""

import pytest

from pixpod.engine.memory.host import free_bytes

MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000 kB\nMemAvailable:   2000000 kB\n"


@pytest.fixture
def host(tmp_path):
    """`limit`, `current` and `stat` are those of its container; None for no file."""

    def make(meminfo=MEMINFO, limit=None, current="0", stat="anon 1\nfile 500\nfile_mapped 7\n"):
        proc, group = tmp_path / "meminfo", tmp_path / "cgroup"
        group.mkdir()
        if meminfo is not None:
            proc.write_text(meminfo, "ascii")
        files = {"memory.max": limit, "memory.current": current, "memory.stat": stat}
        for name, text in files.items():
            if text is not None:
                (group / name).write_text(f"{text}\n", "ascii")
        return free_bytes(proc, group)

    return make


def test_host_without_a_container(host):
    assert host() == 2_000_000 * 1024


@pytest.mark.parametrize(
    ("limit", "current", "expected"),
    [
        ("max", "10000", 2_000_000 * 1024),
        ("20000", "10000", 10500),
        ("20000", "30000", 0),
        ("9000000000000", "10000", 2_000_000 * 1024),
        ("odd", "10000", 2_000_000 * 1024),
    ],
    ids=["unlimited", "cache counts as free", "overdrawn", "more than the host has", "unreadable"],
)
def test_container_counts_if_it_has_less(host, limit, current, expected):
    assert host(limit=limit, current=current) == expected


def test_nothing_is_known_without_the_file(host):
    assert host(meminfo=None) is None


def test_this_host_has_some():
    assert (free_bytes() or 1) > 0

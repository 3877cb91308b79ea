"""The number of processors is that of the CPU affinity, within the quota of every control group around the process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from doorman import ProcessExecutor
from doorman.cli.parser import parse_arguments
from doorman.cores import available_cores, processor_share

ALLOWED = len(os.sched_getaffinity(0))


def process(tmp_path: Path, version: int, groups: dict[str, str], *, own: str = "/a/b", root: str = "/") -> Path:
    """Return a folder like that of a process in /proc, in a control group with these quotas around it."""
    proc, mount = tmp_path / "proc", tmp_path / "cgroup fs"
    proc.mkdir()
    for name, quota in groups.items():
        folder = mount / name
        folder.mkdir(parents=True, exist_ok=True)
        if version == 2:
            (folder / "cpu.max").write_text(f"{quota}\n")
        else:
            for file, value in zip(("cpu.cfs_quota_us", "cpu.cfs_period_us"), quota.split(), strict=True):
                (folder / file).write_text(f"{value}\n")
    (proc / "cgroup").write_text(f"0::{own}\n" if version == 2 else f"4:cpu,cpuacct:{own}\n0::/\n")
    kind = "cgroup2 cgroup2 rw,nsdelegate" if version == 2 else "cgroup cgroup rw,cpu,cpuacct"
    place = str(mount).replace(" ", r"\040")
    (proc / "mountinfo").write_text(f"20 1 0:1 / / rw - ext4 /dev/x rw\n33 20 0:29 {root} {place} rw - {kind}\n")
    return proc


@pytest.mark.parametrize(
    ("version", "groups", "share"),
    [
        (2, {"a/b": "50000 100000"}, 0.5),
        (2, {"a/b": "max 100000", "a": "25000 100000"}, 0.25),
        (2, {"a/b": "150000 100000", "a": "60000 100000", ".": "90000 100000"}, 0.6),
        (2, {"a/b": "max 100000"}, ALLOWED),
        (2, {"a/b": "100000000 100000"}, ALLOWED),
        (2, {"a/b": ""}, ALLOWED),
        (2, {"a/c": "10000 100000"}, ALLOWED),
        (1, {"a/b": "50000 100000"}, 0.5),
        (1, {"a/b": "-1 100000", "a": "20000 50000"}, 0.4),
        (1, {"a/b": "-1 100000"}, ALLOWED),
    ],
)
def test_the_least_quota_around_the_process_counts(tmp_path, version, groups, share):
    proc = process(tmp_path, version, groups)
    assert processor_share(proc) == pytest.approx(share)
    assert available_cores(proc) == max(1, share)


def test_a_container_shows_its_own_group_as_the_root(tmp_path):
    assert processor_share(process(tmp_path, 2, {".": "50000 100000"}, own="/docker/x", root="/docker/x")) == 0.5


def test_without_control_groups_the_affinity_counts(tmp_path):
    assert available_cores(tmp_path) == ALLOWED
    first = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {first})
    try:
        assert available_cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_defaults_are_the_available_cores():
    assert parse_arguments(["map", "true"]).processes == available_cores()
    with ProcessExecutor() as executor:
        assert executor.max_workers == available_cores()


def test_no_other_module_counts_processors():
    root = Path(__file__).parents[2]
    files = [*root.glob("doorman/**/*.py"), *root.glob("remit/**/*.py"), *root.glob("plugins/**/src/**/*.py")]
    assert [file.name for file in files if "cpu_count" in file.read_text()] == ["cores.py"]

"""Free memory: the machine's, and what the limits of a job leave of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from napari_arssr import memory

MACHINE = 64_000


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=MACHINE))


def available(tmp_path: Path, groups: str, files: dict[str, object]) -> int:
    """What is free with these lines of /proc/self/cgroup and files below /sys/fs/cgroup."""
    own, mount = tmp_path / "own", tmp_path / "mount"
    own.write_text(groups)
    for name, value in files.items():
        path = mount / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return memory.available(own, mount)


def v2(group: str, limit: object, used: int, cached: int = 0) -> dict[str, object]:
    return {
        f"{group}/memory.max": limit,
        f"{group}/memory.current": used,
        f"{group}/memory.stat": f"anon {used - cached}\ninactive_file {cached}\nactive_file 7",
    }


def v1(group: str, limit: int, used: int, cached: int = 0) -> dict[str, object]:
    stat = f"cache 3\ninactive_file 3\ntotal_cache 9\ntotal_inactive_file {cached}"
    return {
        f"memory/{group}/memory.limit_in_bytes": limit,
        f"memory/{group}/memory.usage_in_bytes": used,
        f"memory/{group}/memory.stat": stat,
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (v2("job/step", 10_000, 4_000), 6_000),
        (v2("job/step", 10_000, 4_000, cached=1_500), 7_500),  # such a cache goes when asked
        (v2("job/step", 10_000, 4_000) | v2("job", 9_000, 5_000), 4_000),
        (v2("job/step", "max", 4_000) | v2("job", 9_000, 5_000), 4_000),
        (v2("job/step", "max", 4_000) | v2(".", 9_000, 8_000), 1_000),
        (v2("job/step", 10_000, 4_000) | v2("job/other", 100, 100), 6_000),
        (v2("job/step", 4_000, 4_100), 0),  # a limit that was lowered
        (v2("job/step", 10**12, 4_000), MACHINE),
        (v2("job/step", "max", 4_000) | v2("job", "max", 5_000), MACHINE),
        (v2("job/step", "nonsense", 4_000), MACHINE),
        ({"job/step/memory.max": 10_000}, MACHINE),
        ({"job/step/memory.max": 10_000, "job/step/memory.current": 4_000}, 6_000),
        ({}, MACHINE),
    ],
)
def test_a_limit_of_this_group_or_a_parent_counts(
    files: dict[str, object], expected: int, tmp_path: Path
) -> None:
    assert available(tmp_path, "0::/job/step\n", files) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (v1("slurm/job", 10_000, 4_000, cached=1_500), 7_500),
        (v1("slurm/job", 2**63 - 4096, 4_000) | v1("slurm", 9_000, 5_000), 4_000),
        (v1("slurm/job", 2**63 - 4096, 4_000), MACHINE),
        # Seen from inside a container the path is the host's, and the root is the container's.
        (v1(".", 5_000, 2_000), 3_000),
        (v1(".", 5_000, 2_000) | v1("slurm", 100, 100), 3_000),
    ],
)
def test_so_does_one_of_version_1(files: dict[str, object], expected: int, tmp_path: Path) -> None:
    groups = "12:cpu,cpuacct:/other\n4:hugetlb,memory:/slurm/job\n1:name=systemd:/\n0::/init\n"
    assert available(tmp_path, groups, files) == expected


@pytest.mark.parametrize("path", ["/", "/../other", "/on/the:host (deleted)"])
def test_a_container_has_the_limit_of_the_root_it_sees(path: str, tmp_path: Path) -> None:
    files = v2(".", 5_000, 2_000) | v2("../other", 100, 100)
    assert available(tmp_path, f"0::{path}\n", files) == 3_000


def test_without_control_groups_the_machine_is_all(tmp_path: Path) -> None:
    assert memory.available(tmp_path / "none", tmp_path) == MACHINE
    assert available(tmp_path, "nonsense\n", v2(".", 1, 1)) == MACHINE
    assert 0 <= memory.available() <= MACHINE

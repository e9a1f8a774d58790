"""How much memory this process may still take: the machine's, within the limits of its cgroups."""

import os
from collections.abc import Iterator
from pathlib import Path


def host_memory(root: Path = Path("/")) -> tuple[int, int | None]:
    """Return the host's memory and how much of it is free, in bytes; None where the system does not tell.

    A batch system or a container limits a process by its cgroup or one above it, of version 1 or 2; the tightest limit
    counts. Cached pages that the system can take back count as free.

    Args:
        root: What ``/proc`` and ``/sys`` are below.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except FileNotFoundError:  # macOS
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    sizes = {name: int(size.split()[0]) * 1024 for name, size in (line.split(":") for line in lines)}
    total, free = sizes["MemTotal"], sizes["MemAvailable"]
    for limit, used in _limits(root):
        total, free = min(total, limit), min(free, limit - used)
    return total, max(0, free)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield each cgroup's limit and what its processes use of it, in bytes."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit_file, used_file, cached = "", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limit_file, used_file = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        group = root / "sys/fs/cgroup" / mount / path.lstrip("/")
        for folder in (group, *group.parents):  # a container sees its own group as the root, under whatever path
            try:
                limit = (folder / limit_file).read_text().strip()
                used = int((folder / used_file).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except OSError:  # the root of version 2 has no such files
                continue
            if limit != "max":
                yield int(limit), used - int(stat.get(cached, 0))

"""How much memory this process may still take: the machine's, or its container's if that is less."""

from pathlib import Path

_MACHINE = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def free_memory(machine: Path = _MACHINE, container: Path = _CONTAINER) -> int:
    """Bytes that can be had without swapping."""
    available = next(line for line in machine.read_text().splitlines() if line.startswith("MemAvailable:"))
    free = int(available.split()[1]) * 1024
    return min([free, *_left_in(container)])


def _left_in(container: Path) -> list[int]:
    """What a limit leaves, the pages of files that could be dropped included; nothing where there is none."""
    try:
        limit, used = ((container / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (container / "memory.stat").read_text().splitlines())
    except OSError:
        return []
    if limit == "max":
        return []
    return [max(0, int(limit) - int(used) + int(stat.get("inactive_file", 0)))]

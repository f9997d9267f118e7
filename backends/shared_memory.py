"""Python backends talk to Triton through named shared memory, which a killed process leaves behind."""

import os
import re
from pathlib import Path

PLACE = Path("/dev/shm")
OURS = re.compile(r"trident_(\d+)_")


def prefix_for(process: int, port: int) -> str:
    """The prefix of every name that a server started by this process on this port uses."""
    return f"trident_{process}_{port}_"


def remove_regions(prefix: str, place: Path = PLACE) -> None:
    for region in place.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def remove_stale_regions(place: Path = PLACE) -> None:
    """Removes what servers left whose starting process is dead; theirs died with it."""
    for region in place.glob("trident_*"):
        found = OURS.match(region.name)
        if found and not is_running(int(found[1])):
            region.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

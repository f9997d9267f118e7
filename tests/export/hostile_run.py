"""`python -m tests.export.hostile_run DIRECTORY`: import every hostile input under a limit of memory.

Runs in a process of its own, since the limit cannot be lifted again; prints one JSON object per input, and
leaves what importing left behind in DIRECTORY/KIND.
"""

import json
import resource
import shutil
import sys
import warnings
from pathlib import Path

from export.errors import ExportError
from export.pipeline import ExportOptions, export_model
from tests.export.hostile_inputs import INPUTS, Hostile

ROOM = 1 << 30  # bytes beyond what Python and torch have mapped


def outcome(hostile: Hostile, directory: Path) -> dict[str, str]:
    """What importing it says: `refused` with a sentence, `accepted`, or the exception that was not meant."""
    shutil.rmtree(directory / "input", ignore_errors=True)
    (directory / "input").mkdir(parents=True)
    source = hostile.write(directory / "input")
    options = ExportOptions("hostile", source, precision="fp32", repository=directory / "repository")
    try:
        export_model(options, lambda *_: None)
    except ExportError as error:
        return {"name": hostile.name, "outcome": "refused", "said": str(error)}
    except (Exception, MemoryError) as error:
        return {"name": hostile.name, "outcome": "failed", "said": repr(error)[:300]}
    return {"name": hostile.name, "outcome": "accepted", "said": ""}


def main() -> None:
    directory = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    import export.stages  # noqa: F401 (its libraries belong to what is mapped before the limit)

    inputs = [(kind, hostile) for kind in sorted(INPUTS) for hostile in INPUTS[kind]()]
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM, mapped + ROOM))
    for kind, hostile in inputs:
        print(json.dumps({"kind": kind, **outcome(hostile, directory / kind)}), flush=True)


if __name__ == "__main__":
    main()

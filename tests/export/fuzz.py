"""`python -m tests.export.fuzz KIND [SECONDS]`: random damage to sound checkpoints, until the time is over.

A reader may refuse an input or read it; whatever else happens is a fault: another exception, a result that
takes too long, memory beyond the limit, a payload that ran. The input is then kept, and the exit code is 1.
"""

import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from export.errors import ExportError
from export.formats.decoder_graph import is_decoder
from export.formats.detect import detect_format
from export.formats.onnx_graph import read_graph
from export.formats.readers import read_model
from export.graph_decoder import read_source, write_engine
from export.pipeline import ExportOptions
from tests.export import hostile_decoders, hostile_graphs
from tests.export.hostile_inputs import SOUND, Hostile

ROOM = 1 << 30
MAX_SECONDS = 20
NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
HEADER = 1 << 12


def damage(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four changes, most of them near its beginning."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(len(out), HEADER) if rng.random() < 0.8 else len(out)) if out else 0
        match rng.randrange(6):
            case 0:
                out[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                size = rng.choice((1, 2, 4, 8))
                out[place : place + size] = (rng.choice(NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(
                    size, "little"
                )
            case 2:
                del out[place : place + rng.randint(1, 64)]
            case 3:
                out[place:place] = rng.randbytes(rng.randint(1, 64))
            case 4:
                start = rng.randrange(len(out)) if out else 0
                out[place : place + 16] = out[start : start + 16]
            case _:
                del out[max(place, 1) :]
    return bytes(out)


def damaged(sound: Hostile, rng: random.Random) -> Hostile:
    """`sound` with one of its files damaged."""
    name = rng.choice(sorted(sound.files))
    return Hostile("damaged", sound.files | {name: damage(sound.files[name], rng)}, sound.opened)


def read_onnx(path: Path) -> object:
    """What is done with a graph before a process of its own runs it."""
    return read_graph(path) if detect_format(path) == "onnx" else None


def read_decoder(path: Path) -> object:
    """What is done with a decoder before a process of its own runs it."""
    if detect_format(path) != "onnx" or not is_decoder(graph := read_graph(path)):
        return None
    source = read_source(ExportOptions("fuzz", path), graph)
    work = path / "work"
    work.mkdir()
    return write_engine(source, work / "engine", work / "tokenizer")


ALL_SOUND = SOUND | {"onnx": hostile_graphs.sound, "decoder": hostile_decoders.sound}
READERS: dict[str, Callable[[Path], object]] = {"onnx": read_onnx, "decoder": read_decoder}


def attempt(kind: str, hostile: Hostile, directory: Path) -> str:
    """`refused`, `read`, or the fault."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    path = hostile.write(directory)
    signal.alarm(MAX_SECONDS)
    try:
        READERS.get(kind, read_model)(path)
    except ExportError:
        return "refused"
    except BaseException as error:
        return f"fault: {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    return "read"


def too_long(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {MAX_SECONDS} s")


def run(kind: str, seconds: float, seed: int) -> int:
    """Damage and read until the time is over; the exit code."""
    rng, sound, counts = random.Random(seed), ALL_SOUND[kind](), Counter[str]()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM, mapped + ROOM))
    signal.signal(signal.SIGALRM, too_long)
    kept = Path(tempfile.mkdtemp(prefix=f"fuzz-{kind}-"))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        outcome = attempt(kind, damaged(sound, rng), kept / "input")
        if outcome.startswith("fault"):
            print(f"{kind} (seed {seed}): {outcome}\nthe input is in {kept / 'input'}")
            return 1
        counts[outcome] += 1
    shutil.rmtree(kept)
    print(f"{kind}: {counts.total()} inputs in {seconds:g} s (seed {seed}): {dict(counts)}")
    return 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    given = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    sys.exit(run(sys.argv[1], given, int(sys.argv[3]) if len(sys.argv) > 3 else time.time_ns() % 10**6))

"""Sessions: a state is found for its own tokens only, in memory or on disk, and a loss is told."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from backends.causal_lm.caching.prefixes import Prefixes
from backends.causal_lm.caching.session_files import Parked, SessionDirectory
from backends.causal_lm.caching.sessions import Sessions, session_key
from backends.causal_lm.metrics import MemoryMetrics
from tests.backends.test_session_files import equal, files, parked

SIZE = parked(0).nbytes
A, B = session_key("a"), session_key("b")


class Opened:
    """Sessions over one directory, opened again and again, and what they counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = MemoryMetrics()
        self.opened: list[Sessions] = []

    def __call__(self, num_states: int = 100, *, on_disk: bool = True, identity: str = "model") -> Sessions:
        directory = SessionDirectory(self.path, identity, 10**6) if on_disk else None
        self.opened.append(Sessions(num_states * SIZE, directory, self.metrics))
        return self.opened[-1]


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path / "sessions")
    yield opened
    for each in opened.opened:
        each.close()


def longer(state: Parked) -> Prefixes:
    """A prompt that begins with a state's tokens."""
    return Prefixes(np.append(state.tokens, [1, 2, 3]))


def resumed(sessions: Sessions, key: str, prompt: Prefixes, limit: int | None = None) -> Parked | None:
    """What a request of this session would go on from."""
    found: list[str | None] = []
    fetched = threading.Event()

    def then(source: str | None) -> None:
        found.append(source)
        fetched.set()

    limit = len(prompt) if limit is None else limit
    sessions.fetch(key, prompt, limit, then)
    assert fetched.wait(30)
    return None if found[0] is None else sessions.take(found[0], prompt, limit)


def holds(sessions: Sessions, key: str, state: Parked) -> bool:
    found = resumed(sessions, key, longer(state))
    return found is not None and equal(found, state)


def test_a_session_goes_on_from_its_own_state(sessions: Opened) -> None:
    store = sessions(on_disk=False)
    store.park(A, parked(1))
    assert holds(store, A, parked(1))
    assert resumed(store, A, longer(parked(1)), limit=39) is None


def test_other_tokens_find_nothing_whatever_their_session(sessions: Opened) -> None:
    store = sessions()
    store.park(A, parked(1))
    changed = longer(parked(1)).tokens
    changed[20] += 1
    assert resumed(store, A, Prefixes(changed)) is None
    assert resumed(store, A, longer(parked(2))) is None
    assert store.take(A, Prefixes(changed), 99) is None


def test_a_new_session_goes_on_from_the_longest_state_of_any(sessions: Opened) -> None:
    store = sessions()
    store.park(A, parked(1))
    extended = Parked(longer(parked(1)).tokens, parked(2).state)
    store.park(B, extended)
    prompt = longer(extended)
    found = resumed(store, session_key("new"), prompt)
    assert found is not None
    assert equal(found, extended)
    assert holds(store, A, parked(1)), "its own goes before a longer one of another"


def test_a_session_survives_a_restart_and_so_do_forks_of_it(sessions: Opened) -> None:
    first = sessions()
    first.park(A, parked(1))
    first.close()
    second = sessions()
    assert holds(second, A, parked(1))
    assert holds(sessions(), session_key("new"), parked(1))


def test_what_does_not_fit_in_memory_is_on_disk(sessions: Opened) -> None:
    store = sessions(2)
    for seed in range(8):
        store.park(session_key(str(seed)), parked(seed))
        store._writer.submit(lambda: None).result()
    assert store._nbytes <= 2 * SIZE
    assert all(holds(store, session_key(str(seed)), parked(seed)) for seed in range(8))
    assert sessions.metrics.values["sessions_lost_total"] == 0
    assert sessions.metrics.values["session_memory_bytes"] <= 2 * SIZE


def test_without_a_directory_the_oldest_is_forgotten(sessions: Opened) -> None:
    store = sessions(2, on_disk=False)
    for seed in range(3):
        store.park(session_key(str(seed)), parked(seed))
    assert [holds(store, session_key(str(seed)), parked(seed)) for seed in range(3)] == [False, True, True]


def test_a_state_larger_than_the_memory_is_lost_and_told(sessions: Opened) -> None:
    store = sessions(1)
    store.park(A, parked(1, size=3000))
    assert resumed(store, A, longer(parked(1, size=3000))) is None
    assert sessions.metrics.values["sessions_lost_total"] == 1


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        damage,
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["changed", "torn", "empty", "gone"],
)
def test_a_harmed_file_is_refused_counted_and_forgotten(
    sessions: Opened, harm: Callable[[Path], None]
) -> None:
    first = sessions()
    first.park(A, parked(1))
    first.close()
    second = sessions()
    harm(files(sessions.path)[0])
    assert resumed(second, A, longer(parked(1))) is None
    assert sessions.metrics.values["sessions_refused_total"] == 1
    assert files(sessions.path) == []
    second.park(A, parked(1))
    assert holds(second, A, parked(1))


def test_another_models_states_are_refused(sessions: Opened) -> None:
    first = sessions()
    first.park(A, parked(1))
    first.close()
    assert resumed(sessions(identity="other"), A, longer(parked(1))) is None
    assert sessions.metrics.values["sessions_refused_total"] == 1


def test_a_file_that_was_given_anothers_name_is_not_used(sessions: Opened) -> None:
    first = sessions()
    first.park(A, parked(1))
    first.park(B, parked(2))
    first.close()
    one, other = files(sessions.path)
    shutil.copy(one, other)
    second = sessions()
    for key, seed in ((A, 1), (B, 2)):
        found = resumed(second, key, longer(parked(seed)))
        assert found is None or equal(found, parked(seed))


@pytest.mark.parametrize("obstacle", ["gone", "a file", "a full device"])
def test_without_a_disk_sessions_live_in_memory(sessions: Opened, obstacle: str) -> None:
    store = sessions()
    shutil.rmtree(sessions.path)
    if obstacle == "a file":
        sessions.path.write_text("in the way")
    if obstacle == "a full device":
        sessions.path.symlink_to("/dev/full")
    store.park(A, parked(1))
    store._writer.submit(lambda: None).result()
    assert sessions.metrics.values["sessions_lost_total"] == 1
    assert holds(store, A, parked(1))
    sessions.path.unlink(missing_ok=True)
    sessions.path.mkdir()
    store.park(A, parked(2))
    store.close()
    assert holds(sessions(), A, parked(2)), "the disk is used again as soon as it can be"


@pytest.mark.parametrize("session_id", ["../../etc/passwd", "a/b", "\0", "🙂" * 60, "A" * 256, "."])
def test_no_session_id_leaves_the_directory(sessions: Opened, session_id: str) -> None:
    store = sessions()
    store.park(session_key(session_id), parked(1))
    store.close()
    assert len(files(sessions.path)) == 1
    assert holds(sessions(), session_key(session_id), parked(1))


def test_a_closed_store_answers_that_it_has_nothing(sessions: Opened) -> None:
    store = sessions(1)
    store.park(A, parked(1))
    store._writer.submit(lambda: None).result()
    store.park(B, parked(2))
    store.close()
    store.close()
    assert resumed(store, A, longer(parked(1))) is None


def test_many_threads_get_their_own_states_only(sessions: Opened) -> None:
    store = sessions(4)
    wrong: list[str] = []

    def use(number: int) -> None:
        rng = np.random.default_rng(number)
        for turn in range(30):
            key, state = session_key(f"{number}"), parked(100 * number + turn)
            store.park(key, state)
            found = resumed(store, session_key(f"{rng.integers(8)}"), longer(state))
            if found is not None and not equal(found, state):
                wrong.append(key)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert store._nbytes <= 4 * SIZE

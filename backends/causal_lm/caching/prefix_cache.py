"""What has been read before: states at prefixes of prompts, shared by all sequences, within a byte budget."""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from backends.causal_lm.caching.prefixes import BLOCK, Prefixes, PrefixIndex
from backends.causal_lm.runtime.state import Bytes

_Key = tuple[str, bytes]  # the kind of state, the digest of all tokens up to its end


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """State after the first `length` tokens: `kv` rows block by block, and a copy of `recurrent` states.

    What the model has no states of is empty or None; so is all of it at length 0.
    """

    length: int = 0
    blocks: tuple[Bytes, ...] = ()
    snapshot: Bytes | None = None


class PrefixCache:
    """Least recently used out first, `capacity` bytes in all; 0 keeps nothing.

    `kv` states are kept as rows, a block at a time: a prefix is as long as its blocks are there. `recurrent`
    ones are kept as snapshots, each the whole state at one length; models with both kinds need both.
    """

    def __init__(self, kinds: Collection[str], capacity: int) -> None:
        self._has_kv, self._has_recurrent = "kv" in kinds, "recurrent" in kinds
        self.capacity = capacity
        self.nbytes = 0
        self._entries: OrderedDict[_Key, tuple[int, Bytes]] = OrderedDict()  # length, state; oldest first
        self._snapshots: PrefixIndex[bytes] = PrefixIndex()

    def longest(self, prefixes: Prefixes, limit: int) -> CachedPrefix:
        """The longest prefix of at most `limit` tokens whose state is here."""
        length = self._longest(prefixes, limit)
        keys = self._kv_keys(prefixes, length) if self._has_kv else []
        blocks = tuple(self._entries[key][1] for key in keys)
        snapshot = None
        if self._has_recurrent and length:
            keys.append(("recurrent", prefixes.digest(length)))
            snapshot = self._entries[keys[-1]][1]
        self._touch(keys)
        return CachedPrefix(length, blocks, snapshot)

    def missing_blocks(self, prefixes: Prefixes, length: int) -> list[int]:
        """Numbers of the whole blocks of the first `length` tokens whose `kv` rows are not here."""
        keys = self._kv_keys(prefixes, length) if self._has_kv else []
        return [block for block, key in enumerate(keys) if key not in self._entries]

    def lacks_snapshot(self, prefixes: Prefixes, length: int) -> bool:
        """Whether `recurrent` states after `length` tokens are worth copying."""
        return self._has_recurrent and ("recurrent", prefixes.digest(length)) not in self._entries

    def keep_blocks(self, prefixes: Prefixes, rows: Mapping[int, Bytes]) -> None:
        """Keep `kv` rows by the number of their block, unless they would drive out their own beginning."""
        keys = self._kv_keys(prefixes, (max(rows) + 1) * BLOCK) if rows else []
        self._touch(keys)
        own = set(keys)
        for block, saved in rows.items():
            if self.nbytes + saved.nbytes > self.capacity and next(iter(self._entries), keys[0]) in own:
                break
            self._keep(keys[block], (block + 1) * BLOCK, saved)
        self._touch(keys)

    def keep_snapshot(self, prefixes: Prefixes, length: int, snapshot: Bytes) -> None:
        """Keep the `recurrent` states after `length` tokens: in a model with `kv` states whole blocks."""
        assert not self._has_kv or length % BLOCK == 0
        self._keep(("recurrent", prefixes.digest(length)), length, snapshot)

    def _longest(self, prefixes: Prefixes, limit: int) -> int:
        if self._has_kv:
            limit = self._held_blocks(prefixes, limit) * BLOCK
        if not self._has_recurrent:
            return limit if self._has_kv else 0
        found = self._snapshots.longest(prefixes, limit)
        return found[1] if found else 0

    def _held_blocks(self, prefixes: Prefixes, limit: int) -> int:
        keys = self._kv_keys(prefixes, limit)
        return next((block for block, key in enumerate(keys) if key not in self._entries), len(keys))

    def _kv_keys(self, prefixes: Prefixes, length: int) -> list[_Key]:
        return [("kv", prefixes.digest((block + 1) * BLOCK)) for block in range(length // BLOCK)]

    def _touch(self, keys: list[_Key]) -> None:
        """Count as used, the first as the last: a prefix is useless without its beginning."""
        for key in reversed(keys):
            if key in self._entries:
                self._entries.move_to_end(key)

    def _keep(self, key: _Key, length: int, state: Bytes) -> None:
        if key in self._entries or state.nbytes > self.capacity:
            return
        while self.nbytes + state.nbytes > self.capacity:
            self._drop_oldest()
        self._entries[key] = (length, state)
        self.nbytes += state.nbytes
        if key[0] == "recurrent":
            self._snapshots.add(key[1], length, key[1])

    def _drop_oldest(self) -> None:
        (kind, digest), (length, state) = self._entries.popitem(last=False)
        self.nbytes -= state.nbytes
        if kind == "recurrent":
            self._snapshots.remove(digest, length, digest)

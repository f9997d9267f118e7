"""Packed rows: nothing wasted, nothing twice, and each batch a function of its step."""

from collections import Counter
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.packing import PackedBatches
from training.data.text_corpus import pack

END = 0
DOCUMENTS = [[10 * n + i for i in range(1, n + 2)] + [END] for n in range(1, 8)]  # of 3 to 9 tokens
NUM_TOKENS = sum(map(len, DOCUMENTS))

documents = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7), min_size=1, max_size=6)


def packed(length: int = 6, batch_size: int = 2, seed: int = 0) -> PackedBatches:
    return PackedBatches(DOCUMENTS, length=length, batch_size=batch_size, seed=seed)


def test_a_batch_is_a_function_of_its_step() -> None:
    one, other = packed(), packed()
    late = one[200].input_ids
    for step in (3, 0, 77):
        other[step]
    assert torch.equal(late, other[200].input_ids)
    assert not torch.equal(late, packed(seed=1)[200].input_ids)


def test_targets_follow_inputs_and_nothing_is_padding() -> None:
    batch = packed()[5]
    assert batch.input_ids.shape == batch.targets.shape == (2, 6)
    assert torch.equal(batch.input_ids[:, 1:], batch.targets[:, :-1])
    assert batch.valid.all()
    assert batch.num_learned == 12


@settings(max_examples=25, deadline=None)
@given(documents, st.integers(1, 9), st.integers(1, 3))
def test_over_whole_epochs_every_token_is_learned_equally_often(
    texts: list[list[int]], length: int, batch_size: int
) -> None:
    """As many steps as make whole epochs and whole blocks of shuffled rows, whatever the number of tokens."""
    stream = [token for text in texts for token in (*text, END)]
    batches = PackedBatches([[*text, END] for text in texts], length=length, batch_size=batch_size, seed=3)
    steps = len(stream) * max(1, len(stream) // length)
    seen = Counter[int]()
    for step in range(steps):
        seen.update(batches[step].input_ids.flatten().tolist())
    epochs = steps * batch_size * length // len(stream)
    assert seen == {token: count * epochs for token, count in Counter(stream).items()}


def test_an_epoch_of_steps_has_seen_every_token() -> None:
    batches = packed(length=1, batch_size=4)
    seen = Counter(
        token
        for step in range(batches.steps_per_epoch)
        for token in batches[step].input_ids.flatten().tolist()
    )
    assert set(seen) == {token for document in DOCUMENTS for token in document}
    assert batches.steps_per_epoch == -(-NUM_TOKENS // 4)


def test_documents_keep_their_order_inside_and_end_before_the_next_begins() -> None:
    follows = {(a, b) for document in DOCUMENTS for a, b in pairwise(document)}
    firsts = {document[0] for document in DOCUMENTS}
    for step in range(40):
        batch = packed()[step]
        for a, b in zip(batch.input_ids.flatten().tolist(), batch.targets.flatten().tolist(), strict=True):
            assert (a, b) in follows or (a == END and b in firsts)


def test_every_epoch_has_an_order_of_its_own() -> None:
    batches = packed()
    assert batches._epoch(0).tolist() != batches._epoch(1).tolist()
    assert sorted(batches._epoch(0).tolist()) == sorted(batches._epoch(1).tolist())


def test_a_row_longer_than_all_the_data_runs_through_several_epochs() -> None:
    batches = PackedBatches([[1, END], [2, END]], length=11, batch_size=1, seed=0)
    row = batches[0].input_ids[0].tolist()
    assert len(row) == 11
    assert Counter(row[:8]) == {1: 2, 2: 2, END: 4}


@given(documents, st.integers(1, 9))
def test_held_out_rows_learn_each_token_but_the_first_once(texts: list[list[int]], length: int) -> None:
    stream = [token for text in texts for token in (*text, END)]
    rows = list(pack([[*text, END] for text in texts], length))
    assert [token for ids, _ in rows for token in ids[1:]] == stream[1:]
    assert [token for ids, _ in rows for token in ids[:-1]] == stream[:-1]
    assert all(len(ids) == length + 1 for ids, _ in rows[:-1])
    assert all(all(learned) for _, learned in rows)

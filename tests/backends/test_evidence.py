"""Exchangeable blocks of a prompt: where they stand, which orders are drawn, and what is refused."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.tokenizer.errors import PromptError
from backends.tokenizer.evidence import MAX_BLOCKS, MAX_ORDERS, draw_orders
from backends.tokenizer.json_input import MAX_BYTES
from backends.tokenizer.prompt import Prompt, PromptBuilder, load_prompt_builder
from tests.backends.prompt_model import write_tokenizer

BLOCKS = [b"the cat", b"sat", b"on the mat"]
TEXT = b"First:\n{evidence}\nThen?"


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> PromptBuilder:
    return load_prompt_builder(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def turns(*contents: str) -> bytes:
    roles = ["system", "user", "assistant"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return json.dumps(messages).encode()


def same(prompts: list[Prompt], expected: list[Prompt]) -> bool:
    return [(p.text, p.input_ids.tolist()) for p in prompts] == [
        (p.text, p.input_ids.tolist()) for p in expected
    ]


def test_evidence_in_one_order_is_the_prompt_with_its_blocks_written_out(builder: PromptBuilder) -> None:
    written = b"First:\nthe cat\nsat\non the mat\nThen?"
    assert same(builder.build(TEXT, evidence=BLOCKS), builder.build(written))
    placed = builder.build(messages=turns("Use {evidence}", "Where?"), evidence=BLOCKS)
    assert same(placed, builder.build(messages=turns("Use the cat\nsat\non the mat", "Where?")))


def test_every_order_is_a_prompt_of_its_own_the_given_one_first(builder: PromptBuilder) -> None:
    for prompts in (
        builder.build(TEXT, evidence=BLOCKS, num_permutations=6, seed=1),
        builder.build(messages=turns("", TEXT.decode()), evidence=BLOCKS, num_permutations=6, seed=1),
    ):
        assert "First:\nthe cat\nsat\non the mat\nThen?" in prompts[0].text
        assert len({prompt.text for prompt in prompts}) == 6
        for prompt in prompts:
            assert sorted(prompt.text.split("First:\n")[1].split("\nThen?")[0].split("\n")) == [
                "on the mat", "sat", "the cat",
            ]  # fmt: skip


@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 2**64 - 1))
def test_orders_are_different_permutations_that_follow_from_the_seed(
    num_blocks: int, count: int, seed: int
) -> None:
    count = min(count, math.factorial(num_blocks))
    orders = draw_orders(num_blocks, count, seed)
    assert orders[0] == tuple(range(num_blocks))
    assert len(set(orders)) == len(orders) == count
    assert all(sorted(order) == list(range(num_blocks)) for order in orders)
    assert draw_orders(num_blocks, count, seed) == orders


def test_every_other_order_is_drawn_as_often() -> None:
    drawn = Counter(draw_orders(4, 2, seed)[1] for seed in range(4600))
    assert len(drawn) == 23
    # 200 expected of each; five standard deviations of a binomial count are 70
    assert all(130 < times < 270 for times in drawn.values())


def test_without_a_seed_the_orders_differ_from_request_to_request(builder: PromptBuilder) -> None:
    blocks = [f"block {number}".encode() for number in range(30)]
    drawn = {builder.build(TEXT, evidence=blocks, num_permutations=2)[1].text for _ in range(3)}
    assert len(drawn) == 3


def test_a_marker_inside_the_evidence_or_without_any_is_text(builder: PromptBuilder) -> None:
    (prompt,) = builder.build(b"a {evidence} b", evidence=[b"{evidence}"])
    assert prompt.text == "a {evidence} b"
    (plain,) = builder.build(b"{evidence} {evidence}")
    assert plain.text == "{evidence} {evidence}"


def test_evidence_in_a_conversation_can_not_write_control_tokens(builder: PromptBuilder) -> None:
    (safe,) = builder.build(messages=turns("", "{evidence}"), evidence=[b"<|im_end|>"])
    (plain,) = builder.build(messages=turns("", "x"))
    controls = [token for token in safe.input_ids.tolist() if token < 4]
    assert controls == [token for token in plain.input_ids.tolist() if token < 4]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"num_permutations": 2}, "num_permutations: 2 was given without evidence"),
        ({"evidence": []}, f"evidence: 0 blocks; 1 to {MAX_BLOCKS} are allowed"),
        ({"evidence": [b"x"] * (MAX_BLOCKS + 1)}, f"evidence: {MAX_BLOCKS + 1} blocks"),
        ({"evidence": [b"a", b"\xff"]}, r"evidence\[1\]: not UTF-8"),
        ({"evidence": ["\ufdd0".encode()]}, r"evidence\[0\]: the text holds U\+FDD0"),
        ({"evidence": BLOCKS, "num_permutations": 0}, "num_permutations: 0 was given, allowed is 1 to 6"),
        ({"evidence": BLOCKS, "num_permutations": 7}, "7 was given, allowed is 1 to 6 with 3 blocks"),
        (
            {"evidence": [b"x"] * 9, "num_permutations": MAX_ORDERS + 1},
            f"allowed is 1 to {MAX_ORDERS} with 9 blocks",
        ),
        ({"text_input": b"no place", "evidence": BLOCKS}, r"evidence: its place {evidence} stands 0 times"),
        ({"text_input": TEXT + TEXT, "evidence": BLOCKS}, r"evidence: its place {evidence} stands 2 times"),
        (
            {"text_input": None, "messages": turns("{evidence}", "{evidence}"), "evidence": BLOCKS},
            r"evidence: its place {evidence} stands 2 times",
        ),
        (
            {"evidence": [b"x", b"y" * (MAX_BYTES // 2)], "num_permutations": 2},
            r"num_permutations: 2 orders make \d+ characters; at most",
        ),
    ],
)
def test_what_is_wrong_is_an_error_that_names_the_field(
    builder: PromptBuilder, values: dict[str, object], complaint: str
) -> None:
    with pytest.raises(PromptError, match=f"^invalid: .*{complaint}"):
        builder.build(**{"text_input": TEXT} | values)  # type: ignore[arg-type]


def test_a_marker_split_by_a_template_is_not_one(tmp_path: Path) -> None:
    template = "{{ '{' }}evidence}{{ messages[0].content }}"
    builder = load_prompt_builder(write_tokenizer(tmp_path, template=template))
    (prompt,) = builder.build(messages=turns("{evidence}"), evidence=[b"a"])
    assert prompt.text == "{evidence}a"

"""The chat template's sandbox and the disguise of the client's words."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.tokenizer.disguise import Disguise
from backends.tokenizer.json_input import RESERVED_FIRST, RESERVED_LAST
from backends.tokenizer.template import (
    MAX_CHARACTERS,
    MAX_STEPS,
    BoundedTemplate,
    OutOfBoundsError,
    RefusalError,
)
from tests.backends.prompt_model import CONTROL

RESERVED = "".join(chr(code) for code in range(RESERVED_FIRST, RESERVED_LAST + 1))
CLIENT_TEXT = st.text(
    st.one_of(st.sampled_from("<|im_end>[END]s "), st.characters(exclude_characters=RESERVED))
)


def render(source: str, **variables: object) -> str:
    return BoundedTemplate(source).render(**variables)


def test_blocks_are_trimmed_as_hugging_face_does() -> None:
    assert render("{% if true %}\n  a\n  {% endif %}\nb") == "  a\nb"


def test_tojson_is_plain_json() -> None:
    assert render("{{ value | tojson }}", value={"q": "<é & 'x'>"}) == '{"q": "<é & \'x\'>"}'
    assert render("{{ value | tojson(indent=2) }}", value=[1]) == "[\n  1\n]"


def test_generation_blocks_and_loop_controls_are_understood() -> None:
    source = "{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% break %}{% endfor %}"
    assert render(source, messages=["a", "b"]) == "a"


def test_strftime_now_writes_the_date() -> None:
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10


def test_a_template_refuses_messages_with_its_own_words() -> None:
    with pytest.raises(RefusalError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{{ ([0] * 1000000000) | length }}",
    ],
)
def test_the_sandbox_keeps_a_template_from_the_machine(source: str) -> None:
    with pytest.raises(Exception, match=r"unsafe|not allowed"):
        render(source, messages=[])


def test_products_of_numbers_are_allowed() -> None:
    assert render("{{ 6 * 7 }}") == "42"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    ],
)
def test_a_template_can_not_run_away(source: str) -> None:
    with pytest.raises(OutOfBoundsError, match=f"more than {MAX_STEPS} steps"):
        render(source)


def test_a_template_can_not_write_without_end() -> None:
    with pytest.raises(OutOfBoundsError, match=f"more than {MAX_CHARACTERS} characters"):
        render("{% for i in range(100) %}{{ text }}{% endfor %}", text="a" * (MAX_CHARACTERS // 50))


def test_each_rendering_has_its_own_budget() -> None:
    template = BoundedTemplate(f"{{% for i in range({MAX_STEPS - 1}) %}}{{% endfor %}}done")
    assert [template.render() for _ in range(2)] == ["done", "done"]


def test_a_broken_template_is_a_load_error_with_its_line() -> None:
    with pytest.raises(ValueError, match="line 2"):
        BoundedTemplate("fine\n{% if %}")


@given(CLIENT_TEXT, CLIENT_TEXT)
def test_disguised_text_can_not_begin_a_control_token(before: str, after: str) -> None:
    disguise = Disguise(CONTROL, {"<think>", "<|im_end|>"})
    text = disguise.put_on(before) + disguise.put_on(after)
    assert not any(token in text for token in CONTROL)
    assert disguise.take_off(text) == before + after
    assert len(text) == len(before + after)


def test_a_template_still_finds_its_own_harmless_literals_in_content() -> None:
    disguise = Disguise(CONTROL, {"<think>", "<|", "<|im_end|>"})
    assert disguise.put_on("a<think>b") == "a<think>b"
    assert "<|" not in disguise.put_on("a<|b")


def test_removing_a_literal_can_not_uncover_a_control_token() -> None:
    disguise = Disguise(CONTROL, {"<think>"})
    assert "<|im_end|>" not in disguise.put_on("<<think>|im_end|>").replace("<think>", "")


def test_a_model_without_control_tokens_needs_no_disguise() -> None:
    assert Disguise([], ["x"]).put_on("<|im_end|>") == "<|im_end|>"


def test_more_first_characters_than_stand_ins_are_refused() -> None:
    with pytest.raises(ValueError, match="17 characters"):
        Disguise([chr(65 + index) for index in range(17)], ())


def test_the_template_file_is_read_as_utf_8(tmp_path: Path) -> None:
    assert render("日本 {{ x }}", x="é") == "日本 é"

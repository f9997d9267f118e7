"""From `text_input` and `messages` to token ids: contract, errors, and whose words are control tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from backends.tokenizer.errors import PromptError
from backends.tokenizer.json_input import MAX_BYTES
from backends.tokenizer.messages import MAX_MESSAGES
from backends.tokenizer.prompt import Prompt, PromptBuilder, load_prompt_builder
from tests.backends.prompt_model import CHATML, CONTROL, chat_tokenizer, write_tokenizer

START, END = 1, 2


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> PromptBuilder:
    return load_prompt_builder(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def hugging_face() -> PreTrainedTokenizerFast:
    """The independent reference: the same tokenizer and template in transformers."""
    reference = PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer(), bos_token="<|im_start|>")
    reference.chat_template = CHATML
    return reference


def one(builder: PromptBuilder, text_input: bytes | None, messages: bytes | None) -> Prompt:
    """The only prompt of a request without evidence."""
    (prompt,) = builder.build(text_input, messages)
    return prompt


def chat(*contents: str) -> bytes:
    roles = ["user", "assistant"]
    turns = [{"role": roles[index % 2], "content": text} for index, text in enumerate(contents)]
    return json.dumps(turns).encode()


@pytest.mark.parametrize(
    "contents", [["hi"], ["the cat", "sat", " on the mat 🙂 日本語 "], ["", "a <b> [c]"]]
)
def test_plain_conversations_encode_as_hugging_face_does(
    builder: PromptBuilder, hugging_face: PreTrainedTokenizerFast, contents: list[str]
) -> None:
    messages = json.loads(chat(*contents))
    text = hugging_face.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = one(builder, None, chat(*contents))
    assert prompt.text == text
    assert prompt.input_ids.tolist() == hugging_face(text, add_special_tokens=False)["input_ids"]
    assert prompt.input_ids.dtype == np.int32


@given(st.lists(st.sampled_from([*CONTROL, "<", "|im_end|>", "<think>", "hi ", "\n", "🙂"]), max_size=8))
def test_content_never_becomes_a_control_token(builder: PromptBuilder, pieces: list[str]) -> None:
    content = "".join(pieces)
    prompt = one(builder, None, chat(content))
    plain = one(builder, None, chat("x"))
    controls = [int(token) for token in prompt.input_ids if token < len(CONTROL)]
    assert controls == [int(token) for token in plain.input_ids if token < len(CONTROL)]
    assert content in prompt.text
    decoded = chat_tokenizer().decode(prompt.input_ids.tolist(), skip_special_tokens=False)
    assert decoded == prompt.text


def test_added_tokens_that_are_not_control_stay_words_of_everyone(builder: PromptBuilder) -> None:
    think = chat_tokenizer().token_to_id("<think>")
    assert think in one(builder, None, chat("<think>")).input_ids


def test_the_author_of_a_raw_prompt_may_write_control_tokens(builder: PromptBuilder) -> None:
    prompt = one(builder, b"<|im_start|>user\nhi<|im_end|>", None)
    assert (prompt.input_ids[0], prompt.input_ids[-1]) == (START, END)
    assert prompt.input_ids.tolist() == chat_tokenizer().encode(prompt.text, add_special_tokens=False).ids


def test_control_tokens_that_take_the_space_beside_them_still_do(tmp_path: Path) -> None:
    stripping = json.loads(chat_tokenizer().to_str())
    stripping["added_tokens"][END] |= {"lstrip": True, "rstrip": True}
    tokenizer = Tokenizer.from_str(json.dumps(stripping))
    expected = tokenizer.encode("the <|im_end|> cat", add_special_tokens=False).ids
    prompt = load_prompt_builder(write_tokenizer(tmp_path, tokenizer=tokenizer)).from_text(
        "the <|im_end|> cat"
    )
    assert prompt.input_ids.tolist() == expected


def test_position_dependent_tokenizers_see_one_text(tmp_path: Path) -> None:
    """Metaspace marks the first word only: encoding the pieces one by one would mark each of them."""
    vocabulary = {"<s>": 0, "</s>": 1, "▁": 2, "a": 3, "b": 4, "▁a": 5, "<unk>": 6}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(["<s>", "</s>"])
    expected = tokenizer.encode("a</s>b a", add_special_tokens=False).ids
    prompt = load_prompt_builder(write_tokenizer(tmp_path, tokenizer=tokenizer)).from_text("a</s>b a")
    assert prompt.input_ids.tolist() == expected


@pytest.mark.parametrize(("text", "first"), [(b"hi", [START]), (b"<|im_start|>hi", [START]), (b"", [START])])
def test_a_raw_prompt_gets_the_first_token_once_where_the_model_says_so(
    tmp_path: Path, text: bytes, first: list[int]
) -> None:
    builder = load_prompt_builder(write_tokenizer(tmp_path, add_bos_token=True))
    ids = one(builder, text, None).input_ids.tolist()
    assert ids[:1] == first
    assert START not in ids[1:]


def test_no_first_token_is_added_unless_the_model_says_so(builder: PromptBuilder) -> None:
    assert START not in one(builder, b"hi", None).input_ids


@pytest.mark.parametrize(
    ("text_input", "messages", "complaint"),
    [
        (None, None, "invalid: text_input: neither"),
        (b"a", b"[]", "invalid: messages: given together"),
        (b"", None, "invalid: text_input: empty"),
        (b"a\xffb", None, "invalid: text_input: not UTF-8: byte 0xff at 1"),
        (b"a" * (MAX_BYTES + 1), None, f"invalid: text_input: {MAX_BYTES + 1} bytes; at most {MAX_BYTES}"),
        ("\ufdd0".encode(), None, "invalid: text_input: the text holds U\\+FDD0"),
        (None, b"", "invalid: messages: not JSON"),
        (None, b'[{"role"', "invalid: messages: not JSON"),
        (None, b"[" * 100_000, "invalid: messages: not JSON"),
        (None, b'"hi"', "invalid: messages: a JSON string; an array"),
        (None, b"{}", "invalid: messages: a JSON object; an array"),
        (None, b"7", "invalid: messages: a JSON number; an array"),
        (None, b"null", "invalid: messages: a JSON null; an array"),
        (None, b"[]", "invalid: messages: 0 messages"),
        (None, b"[" + b"{}," * MAX_MESSAGES + b"{}]", f"invalid: messages: {MAX_MESSAGES + 1} messages"),
        (None, b'["hi"]', "invalid: messages: message 0 is a JSON string"),
        (None, b'[{"role": "user"}]', "invalid: messages: message 0 needs a string as content, not null"),
        (None, b'[{"content": "x"}]', "invalid: messages: message 0 needs a string as role, not null"),
        (None, b'[{"role": "user", "content": [1]}]', "message 0 needs a string as content, not array"),
        (None, b'[{"role": "user", "content": true}]', "message 0 needs a string as content, not boolean"),
        (None, b'[{"role": "a b", "content": "x"}]', "message 0 has the role 'a b'"),
        (None, b'[{"role": "", "content": "x"}]', "message 0 has the role ''"),
        (None, b'[{"role": "user", "content": "x", "n": 1}]', "message 0 has the key 'n'"),
        (None, b'[{"role": "user", "content": "\\ud83d"}]', "the content of message 0 holds U\\+D83D"),
        (None, b'[{"role": "user", "content": "\xff"}]', "invalid: messages: not UTF-8"),
    ],
)
def test_what_is_wrong_is_an_error_that_names_the_field(
    builder: PromptBuilder, text_input: bytes | None, messages: bytes | None, complaint: str
) -> None:
    with pytest.raises(PromptError, match=complaint) as caught:
        one(builder, text_input, messages)
    assert caught.value.code == "invalid"
    assert caught.value.field in {"text_input", "messages"}


def test_the_largest_allowed_text_is_encoded(builder: PromptBuilder) -> None:
    assert one(builder, b"the cat " * (MAX_BYTES // 8), None).input_ids.size > 0


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ raise_exception('no <role> ' + messages[0]['role']) }}", "invalid: messages: no <role> user"),
        ("{{ raise_exception(messages[0]['content']) }}", "invalid: messages: <|im_end|>"),
        (
            "{% for i in range(99999) %}{% for j in range(9) %}{% endfor %}{% endfor %}",
            "invalid: messages: the chat",
        ),
        ("{{ messages[0].nothing.there }}", "internal: messages: the chat template failed"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "internal: messages: the chat template failed"),
        ("", "invalid: messages: the chat template makes an empty prompt"),
    ],
)
def test_what_the_template_objects_to_is_this_requests_error(
    tmp_path: Path, template: str, complaint: str
) -> None:
    builder = load_prompt_builder(write_tokenizer(tmp_path, template=template))
    with pytest.raises(PromptError) as caught:
        one(builder, None, chat("<|im_end|>"))
    assert str(caught.value).startswith(complaint)


def test_a_model_without_a_template_takes_raw_prompts_only(tmp_path: Path) -> None:
    builder = load_prompt_builder(write_tokenizer(tmp_path, template=None))
    assert one(builder, b"hi", None).input_ids.size
    with pytest.raises(PromptError, match="invalid: messages: this model has no chat template"):
        one(builder, None, chat("hi"))


def test_the_template_gets_the_names_of_the_control_tokens(tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    prompt = one(load_prompt_builder(write_tokenizer(tmp_path, template=template)), None, chat("hi"))
    assert prompt.text == "<|im_start|>hi<|im_end|>"
    assert (prompt.input_ids[0], prompt.input_ids[-1]) == (START, END)


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{}"), ("tokenizer_config.json", "nope"), ("chat_template.jinja", "{% if %}")],
)
def test_a_broken_file_is_a_load_error_that_names_it(tmp_path: Path, name: str, content: str) -> None:
    directory = write_tokenizer(tmp_path)
    (directory / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        load_prompt_builder(directory)


def test_a_missing_file_is_a_load_error_that_names_it(tmp_path: Path) -> None:
    directory = write_tokenizer(tmp_path)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_prompt_builder(directory)


def test_a_first_token_that_is_no_token_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'<nope>' is no token"):
        load_prompt_builder(write_tokenizer(tmp_path, add_bos_token=True, bos_token="<nope>"))

"""Tokenizers in every form they come in: the ids of transformers' AutoTokenizer and of SentencePiece."""

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from export.errors import ExportError
from export.formats.gguf_tokenizer import tokenizer_files_from_metadata
from export.formats.hf_tokenizer import read_tokenizer
from export.formats.imported import TokenizerFiles
from tests.export.tiny_gguf import CONTROL, train_vocabulary

NASTY = [
    "",
    " ",
    "   leading and trailing   ",
    "two  spaces and\ttab\n\nnewlines\r\n \n",
    "don't I'll WE'RE they'd",
    "1234567890 3.14159 1,000,000 ٣²½",
    "naïve café Å Å ﬁ Ⅷ e\u0301 ö",
    "日本語のテキスト 中文 한국어",
    "👩‍👩‍👧‍👦 🇫🇷 👍🏽 \u200b\u200d\ufeff",
    "مرحبا שלום हिन्दी ไทย",
    "def f(x):\n    return {'a': [x**2 for _ in range(10)]}  # ok?",
    "<|im_start|>user\nhi<|im_end|>",
    "a<s>b</s>c<unk>",
    "▁under▁score _ __",
    "\x00\x01\x7f control",
    "a" * 300,
    "https://example.org/a?b=c&d=%20#e",
    "the capital of france is paris",
]


def ids_of(files: TokenizerFiles, text: str) -> list[int]:
    """As a prompt: the first token goes before it, if the configuration says so."""
    tokenizer = Tokenizer.from_str(files.tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [tokenizer.token_to_id(files.config["bos_token"]), *ids] if files.config["add_bos_token"] else ids


def write_config(directory: Path, **config: Any) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model such as Llama's: byte-pair encoding with byte fallback and no normalisation."""
    directory = tmp_path_factory.mktemp("spm")
    (directory / "text").write_text("\n".join(topics[name] for name in sorted(topics)[:40]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "text"),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    return directory / "tokenizer.model"


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer"])
@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json"])
def test_byte_level_tokenizers_give_the_ids_of_transformers(name: str, form: str, tmp_path: Path) -> None:
    tokens, merges = train_vocabulary()
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    write_config(tmp_path, tokenizer_class=name, eos_token=CONTROL[0], bos_token=None)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    if form == "tokenizer.json":
        theirs.save_pretrained(tmp_path)
        (tmp_path / "vocab.json").unlink()
        (tmp_path / "merges.txt").unlink()
    files, special = read_tokenizer(tmp_path, 300)
    assert special.eos == (0, 2)
    assert {text: ids_of(files, text) for text in NASTY} == {text: theirs(text).input_ids for text in NASTY}


@pytest.mark.parametrize("form", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_sentencepiece_model_gives_the_ids_of_transformers(
    form: str, adds_bos: bool, spm: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm.read_bytes())
    write_config(tmp_path, tokenizer_class="LlamaTokenizer", add_bos_token=adds_bos)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    if form == "tokenizer.json":
        theirs.save_pretrained(tmp_path)
        (tmp_path / "tokenizer.model").unlink(missing_ok=True)
    files, special = read_tokenizer(tmp_path, 900)
    assert (special.bos, special.eos) == (1, (2,))
    assert files.config["add_bos_token"] is adds_bos
    assert {text: ids_of(files, text) for text in NASTY} == {text: theirs(text).input_ids for text in NASTY}


def spm_metadata(path: Path) -> dict[str, Any]:
    """What a converter to GGUF writes."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = range(model.get_piece_size())
    checks = ((model.is_unknown, 2), (model.is_control, 3), (model.is_byte, 6))
    kinds = [next((kind for is_it, kind in checks if is_it(piece)), 1) for piece in pieces]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(piece) for piece in pieces],
        "tokenizer.ggml.scores": [model.get_score(piece) for piece in pieces],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def test_a_gguf_sentencepiece_vocabulary_gives_the_ids_of_sentencepiece(spm: Path) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    files = tokenizer_files_from_metadata(spm_metadata(spm))
    assert files.config["add_bos_token"] is True
    # As in transformers, control tokens in text are read, and a text with a space before it gets no other.
    texts = [text for text in NASTY if "<s>" not in text and not text.startswith((" ", "▁"))]
    texts += [topics[name] for name in sorted(topics)[:20]]
    assert {text: ids_of(files, text)[1:] for text in texts} == {text: model.encode(text) for text in texts}
    tokenizer = Tokenizer.from_str(files.tokenizer)
    assert {text: tokenizer.decode(ids_of(files, text)) for text in texts} == {text: text for text in texts}


def test_a_gguf_sentencepiece_vocabulary_gives_the_ids_of_transformers(spm: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm.read_bytes())
    write_config(tmp_path, tokenizer_class="LlamaTokenizer", add_bos_token=True)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    files = tokenizer_files_from_metadata(spm_metadata(spm))
    assert {text: ids_of(files, text) for text in NASTY} == {text: theirs(text).input_ids for text in NASTY}


def test_a_gguf_vocabulary_may_say_that_no_space_goes_before(spm: Path) -> None:
    metadata = spm_metadata(spm)
    plain, bare = (
        tokenizer_files_from_metadata({**metadata, "tokenizer.ggml.add_space_prefix": adds})
        for adds in (True, False)
    )
    assert ids_of(plain, "the") == ids_of(bare, " the") != ids_of(bare, "the")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokenizer.ggml.scores": [0.0]}, "scores has 1 entries for 900 tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type has 1 entries for 900 tokens"),
        ({"tokenizer.ggml.eos_token_id": 900}, "eos_token_id is 900, which is no token"),
    ],
)
def test_a_vocabulary_that_does_not_add_up_is_refused(
    changes: dict[str, Any], sentence: str, spm: Path
) -> None:
    with pytest.raises(ExportError, match=sentence):
        tokenizer_files_from_metadata(spm_metadata(spm) | changes)


def directory_with(tmp_path: Path, **files: Any) -> Path:
    tokens, merges = train_vocabulary()
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    write_config(tmp_path, tokenizer_class="GPT2Tokenizer", eos_token=CONTROL[0], **files)
    return tmp_path


def test_the_template_is_the_file_or_the_configurations_default(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    directory = directory_with(tmp_path, chat_template=named)
    assert read_tokenizer(directory, 300)[0].chat_template == "D"
    directory_with(tmp_path, chat_template="one")
    files, _ = read_tokenizer(directory, 300)
    assert files.chat_template == "one"
    assert "chat_template" not in files.config
    (directory / "chat_template.jinja").write_text("file")
    assert read_tokenizer(directory, 300)[0].chat_template == "file"


def test_every_end_that_is_named_anywhere_ends(tmp_path: Path) -> None:
    directory = directory_with(tmp_path)
    (directory / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert read_tokenizer(directory, 300)[1].eos == (0, 7, 2)


def test_a_directory_without_tokenizer_lists_what_is_there(tmp_path: Path) -> None:
    write_config(tmp_path)
    with pytest.raises(
        ExportError, match=r"no tokenizer\.json.*there are config\.json, tokenizer_config\.json"
    ):
        read_tokenizer(tmp_path, 300)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"\x0a\xff\xff\xff\xff\x0f"])
def test_a_damaged_sentencepiece_model_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    write_config(tmp_path, tokenizer_class="LlamaTokenizer")
    with pytest.raises(ExportError, match=r"cannot be converted|goes up to|names no eos") as caught:
        read_tokenizer(tmp_path, 2)
    assert "\n" not in str(caught.value)

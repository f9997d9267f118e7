"""A tokenizer version directory with control tokens, made in a moment, for the prompt's tests."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[END]"]
CHATML = """\
{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif -%}
    {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def chat_tokenizer() -> Tokenizer:
    """Byte-level BPE with four control tokens and one added token, `<think>`, that isn't control."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    corpus = "the cat sat on the mat. system user assistant <|im_start|> im_end You help. 日本語 🙂 thinking"
    tokenizer.train_from_iterator([corpus] * 3, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


def write_tokenizer(
    directory: Path,
    *,
    template: str | None = CHATML,
    tokenizer: Tokenizer | None = None,
    **config: object,
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (tokenizer or chat_tokenizer()).save(str(directory / "tokenizer.json"))
    names = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>", "special": True}}
    (directory / "tokenizer_config.json").write_text(json.dumps(names | config))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return directory

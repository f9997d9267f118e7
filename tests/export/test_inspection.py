"""`trident inspect`: what is true of each checkpoint, told without reading weights, and one clear refusal."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from export.formats.readers import open_checkpoint
from export.inspect_command import app
from export.inspection import inspect
from tests.export.hf_models import CASES, change_config, write_model
from tests.export.tiny_gguf import TinyLlama
from training.decoder import count_parameters

BY_NAME = {f"{case.model_type}-{case.name}": case for case in CASES}


def rows_of(path: Path) -> dict[str, str]:
    return dict(inspect(path).rows)


def test_a_hugging_face_directory_is_described(tmp_path: Path) -> None:
    model = BY_NAME["mixtral-window"].make().bfloat16()
    rows = rows_of(write_model(tmp_path, model))
    assert rows["format"].startswith("huggingface, ")
    assert rows["architecture"].startswith("mixtral: 2 layers of 64, 4 heads of 128 on 2 key heads")
    assert "1 of 3 experts" in rows["architecture"]
    assert rows["parameters"] == f"{model.num_parameters():,}"
    assert rows["stored as"] == "BF16 100.0%"
    assert rows["context"] == "256 tokens, of which each layer sees the last 13"
    assert rows["tokenizer"] == "BPE, 300 tokens, ended by '<|im_end|>'"
    assert rows["chat template"].endswith("renders")


def test_a_gguf_file_is_described(tmp_path: Path) -> None:
    path = TinyLlama().write(tmp_path / "tiny.gguf")
    rows = rows_of(path)
    assert rows["format"].startswith("gguf, ")
    assert rows["architecture"].startswith(
        "llama: 2 layers of 128, 2 heads of 64 on 1 key heads, swiglu of 96"
    )
    assert rows["parameters"] == f"{count_parameters(open_checkpoint(path).config):,}"


def test_what_is_odd_is_said(tmp_path: Path) -> None:
    write_model(tmp_path, BY_NAME["llama-grouped"].make(vocab_size=320))
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "modeling_odd.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    odd = "\n".join(inspect(tmp_path).oddities)
    assert "20 of the model's 320 tokens have no text" in odd
    assert "without a chat template" in odd
    assert "code (modeling_odd.py), which is never run" in odd
    assert "weights as .bin and .safetensors; safetensors are read" in odd
    assert "no generation_config.json" in odd


def test_the_command_prints_the_description(tmp_path: Path) -> None:
    write_model(tmp_path, BY_NAME["qwen3-norms"].make())
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "qwen3: 2 layers" in re.sub(r"\s+", " ", result.output)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'; known are gpt2, llama.*It says: .*hidden_size 64"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported is 'silu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "the scaling is 'yarn'; supported are"),
        ({"partial_rotary_factor": 0.5}, "50% of each head is rotated"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized by gptq"),
        ({"mlp_bias": True}, "mlp_bias without attention_bias"),
        ({"hidden_size": "64"}, "hidden_size is '64'; a whole number is needed"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is 'nan'; a finite number"),
        ({"num_hidden_layers": 1000}, "num_layers = 1000"),
        ({"eos_token_id": 4000}, "eos_token_id 4000 is no token"),
        ({"vocab_size": 12}, "the tokenizer in .* goes up to 299, the model to 11"),
        ({"format": "trident-checkpoint/1"}, "of model_type 'llama': which of them"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    write_model(tmp_path, BY_NAME["llama-grouped"].make())
    change_config(tmp_path, **changes)
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith("trident inspect: ")
    assert result.stderr.count("\n") == 1
    assert re.search(sentence, result.stderr)

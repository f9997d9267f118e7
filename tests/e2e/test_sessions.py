"""Sessions through the real server: a conversation goes on after a restart as if it were read anew."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from tests.backends.prompt_model import chat_tokenizer
from tests.e2e.conftest import running_triton
from tests.e2e.tiny_models import PRESETS, install_tiny
from tests.e2e.triton_calls import Answer, generate, until_metric

pytestmark = pytest.mark.triton

PROMPT = "the cat sat on the mat and the dog ran to the cat, then they ate. " * 8
WORDS = {"max_tokens": 24, "min_tokens": 24, "temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models with a session directory, and without a prefix cache that would help them."""
    scratch = tmp_path_factory.mktemp("sessions")
    for name in PRESETS:
        install_tiny(name, scratch / "repository", tmp_path_factory)
        path = scratch / "repository" / f"{name}_engine" / "config.pbtxt"
        config = text_format.Parse(path.read_text(), triton.ModelConfig())
        config.parameters["session_directory"].string_value = str(scratch / "chats")
        config.parameters["prefix_cache_bytes"].string_value = "0"
        path.write_text(text_format.MessageToString(config))
    return scratch / "repository"


async def test_a_conversation_goes_on_after_a_restart_with_the_same_words(repository: Path) -> None:
    turns: dict[str, tuple[list[int], Answer]] = {}
    ids = chat_tokenizer().encode(PROMPT, add_special_tokens=False).ids
    with running_triton(repository) as server:
        for model in PRESETS:
            first = await generate(server.grpc, model, text_input=PROMPT, session_id="a/../b", **WORDS)
            turn = [*ids, *first.ids, 7, 8, 9]
            plain = await generate(server.grpc, f"{model}_engine", input_ids=turn, **WORDS)
            assert [answer.pieces[0]["num_cached_tokens"] for answer in (first, plain)] == [0, 0]
            turns[model] = turn, plain
    with running_triton(repository) as server:
        for model, (turn, plain) in turns.items():
            resumed = await generate(
                server.grpc, f"{model}_engine", input_ids=turn, session_id="a/../b", **WORDS
            )
            assert resumed.ids == plain.ids
            assert resumed.pieces[0]["num_cached_tokens"] >= len(ids) - 34
            await until_metric(server.metrics, "sessions_resumed_total", f"{model}_engine", equals=1)

"""Engine settings come from strings and are refused by name."""

import pytest

from backends.causal_lm.manifest import LoadError
from backends.causal_lm.settings import EngineSettings


def test_parameters_are_parsed_from_strings() -> None:
    settings = EngineSettings.from_parameters(
        {"slots": "4", "spinning": "false", "session_directory": "/var/chats"}
    )
    assert settings == EngineSettings(slots=4, spinning=False, session_directory="/var/chats")


def test_the_servers_environment_speaks_where_a_model_does_not() -> None:
    variables = {"CAUSAL_LM_SESSION_DIRECTORY": "/var/chats", "HOME": "/root"}
    assert EngineSettings.from_server({"slots": "4"}, variables) == EngineSettings(
        slots=4, session_directory="/var/chats"
    )
    own = EngineSettings.from_server({"session_directory": "/own"}, variables)
    assert own.session_directory == "/own"
    with pytest.raises(LoadError, match="session_directory is 'chats', an absolute path is needed"):
        EngineSettings.from_server({}, {"CAUSAL_LM_SESSION_DIRECTORY": "chats"})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"slot": "4"}, "unknown parameter 'slot'; known are slots, queue_size"),
        ({"slots": "four"}, "slots is 'four', an integer is needed"),
        ({"slots": "0"}, "slots is 0, allowed is 1 or more"),
        ({"prefill_tokens": "3"}, "prefill_tokens is 3, allowed is 4 or more"),
        ({"interleave_tokens": "512"}, "interleave_tokens is 512, allowed is up to prefill_tokens, 256"),
        ({"prefix_cache_bytes": "-1"}, "prefix_cache_bytes is -1, allowed is 0 or more"),
        ({"session_directory": "chats"}, "session_directory is 'chats', an absolute path is needed"),
        ({"spinning": "maybe"}, "spinning is 'maybe', allowed are true, false"),
    ],
)
def test_a_wrong_parameter_is_named(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        EngineSettings.from_parameters(parameters)

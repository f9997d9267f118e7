"""Whatever a schema says, the answers of a model of random weights keep to it."""

import json
from collections.abc import Iterator

import pytest
from jsonschema import Draft202012Validator as Validator

from backends.causal_lm.engine import Engine
from backends.causal_lm.loading import load_engine
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.settings import EngineSettings
from tests.backends.conftest import RecordingSink, ask
from tests.backends.json_schemas import Schema, SchemaGenerator
from tests.backends.tiny_graph import write_model

NUM_SCHEMAS = 1000
AT_ONCE = 16
CONTEXT = 2048  # retention has no longest position


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    directory = write_model(tmp_path_factory.mktemp("long"), ("retention",), max_length=CONTEXT)
    engine = load_engine(directory, EngineSettings(threads=1), MemoryMetrics())
    yield engine
    engine.close()


def answer(engine: Engine, schema: Schema, seed: int) -> RecordingSink:
    return ask(
        engine,
        "the cat",
        guided_decoding_guide_type="json_schema",
        guided_decoding_guide=json.dumps(schema),
        temperature=1.0,
        repetition_penalty=(1.0, 1.2)[seed % 2],
        seed=seed,
        max_tokens=1500,
    )


def test_a_thousand_random_schemas_are_kept_to(engine: Engine) -> None:
    generator = SchemaGenerator(seed=1)
    finished, kinds = 0, set()
    for start in range(0, NUM_SCHEMAS, AT_ONCE):
        batch = [generator.schema() for _ in range(start, min(start + AT_ONCE, NUM_SCHEMAS))]
        sinks = [answer(engine, schema, start + place) for place, schema in enumerate(batch)]
        for schema, sink in zip(batch, sinks, strict=True):
            assert sink.wait().failure is None, (schema, sink.failure)
            assert sink.reason in ("stop", "length")
            if sink.reason == "stop":
                value = json.loads(sink.text)
                Validator(schema, format_checker=Validator.FORMAT_CHECKER).validate(value)
                finished, kinds = finished + 1, kinds | {type(value)}
    assert finished > 0.98 * NUM_SCHEMAS, "the context is long enough for nearly all of them"
    assert kinds == {dict, list, str, int, float, bool, type(None)}

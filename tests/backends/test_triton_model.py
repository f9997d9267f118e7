"""The adapters between Triton and our modules, over a stand-in; tests/e2e has the real server."""

import importlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from backends.causal_lm.manifest import LoadError
from backends.causal_lm.metrics import FAMILIES
from export import contract
from tests.backends import triton_double
from tests.backends.conftest import FIGURES
from tests.backends.prompt_model import write_tokenizer
from tests.backends.tiny_graph import LARGEST_FIGURE, write_model
from tests.backends.triton_double import FINAL, Config, InferenceRequest

ADAPTERS = (
    "backends.causal_lm.triton.triton_metrics",
    "backends.causal_lm.triton.response_sink",
    "backends.causal_lm.model",
    "backends.tokenizer.model",
)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Triton's module as far as the adapters use it, and the adapters imported afresh over it."""
    made = triton_double.module()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", made)
    for name in ADAPTERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return made


def arguments(repository: Path, *, extras: tuple[str, ...] = (), **parameters: str) -> dict[str, str]:
    values = {name: {"string_value": value} for name, value in parameters.items()}
    return {
        "model_name": "tiny_engine",
        "model_version": "1",
        "model_repository": str(repository),
        "model_config": json.dumps(
            {"parameters": values, "output": [{"name": name} for name in (*contract.OUTPUTS, *extras)]}
        ),
    }


@pytest.fixture
def engine_model(triton: ModuleType, tmp_path: Path) -> Iterator[Any]:
    write_model(tmp_path / "1", ("attention",))
    model = importlib.import_module("backends.causal_lm.model").TritonPythonModel()
    model.initialize(arguments(tmp_path, slots="2"))
    yield model
    model.finalize()


def request(request_id: str = "", **tensors: Any) -> InferenceRequest:
    arrays = {
        name: np.array([value if isinstance(value, list) else [value]]) for name, value in tensors.items()
    }
    for name in ("input_ids", "max_tokens", "min_tokens", "num_log_probs"):
        if name in arrays:
            arrays[name] = arrays[name].astype(np.int32)
    return InferenceRequest(arrays, list(contract.OUTPUTS), request_id)


def answered(model: Any, asked: InferenceRequest) -> InferenceRequest:
    model.execute([asked])
    deadline = time.monotonic() + 20
    while not (asked.sender.sent and asked.sender.sent[-1][1] == FINAL):
        assert time.monotonic() < deadline, "the request never ended"
        time.sleep(0.005)
    return asked


def test_the_declared_tensors_are_those_of_the_exported_ensemble(triton: ModuleType) -> None:
    engine = importlib.import_module("backends.causal_lm.model").TritonPythonModel.auto_complete_config(
        Config()
    )
    tokenizer = importlib.import_module("backends.tokenizer.model").TritonPythonModel.auto_complete_config(
        Config()
    )
    assert (engine.max_batch_size, tokenizer.max_batch_size, engine.policy) == (1, 1, {"decoupled": True})
    for name, spec in contract.GENERATION_INPUTS.items():
        assert (engine.inputs[name]["data_type"], tuple(engine.inputs[name]["dims"])) == spec
        assert engine.inputs[name]["optional"]
    for name, spec in contract.OUTPUTS.items():
        assert (engine.outputs[name]["data_type"], tuple(engine.outputs[name]["dims"])) == spec
    for name in contract.TOKENIZED:
        assert engine.inputs[name]["data_type"] == tokenizer.outputs[name]["data_type"]
        assert engine.inputs[name]["dims"] == tokenizer.outputs[name]["dims"]
    assert set(tokenizer.inputs) == {*contract.PROMPT_INPUTS, *contract.SHARED}
    for name, spec in contract.PROMPT_INPUTS.items():
        assert (tokenizer.inputs[name]["data_type"], tuple(tokenizer.inputs[name]["dims"])) == spec
    for name in contract.SHARED:
        assert tokenizer.inputs[name] == engine.inputs[name]
    assert set(engine.inputs) == {*contract.GENERATION_INPUTS, *contract.TOKENIZED, "stop"}


def test_an_answer_is_one_final_response_with_every_tensor(engine_model: Any) -> None:
    asked = answered(engine_model, request(input_ids=[5, 6], max_tokens=4, min_tokens=4, num_log_probs=2))
    ((response, flags),) = asked.sender.sent
    values = response.values
    assert flags == FINAL
    assert set(values) == set(contract.OUTPUTS)
    assert all(tensor.array.shape[0] == 1 for tensor in response.tensors)
    assert (values["num_input_tokens"], values["num_output_tokens"]) == ([2], [4])
    assert len(values["output_ids"]) == 4
    assert [len(top) for top in json.loads(values["top_log_probs"][0])] == [2] * 4
    assert set(json.loads(values["timings"][0])) == {"queue_ns", "prefill_ns", "decode_ns"}


def test_a_stream_has_one_final_and_no_timings_before_it(engine_model: Any) -> None:
    asked = answered(engine_model, request(input_ids=[5, 6], max_tokens=20, min_tokens=20, stream=True))
    flags = [flag for _, flag in asked.sender.sent]
    assert len(flags) > 1
    assert flags == [0] * (len(flags) - 1) + [FINAL]
    assert all(response.values["timings"] == [b""] for response, _ in asked.sender.sent[:-1])


def test_only_wanted_tensors_are_sent(engine_model: Any) -> None:
    asked = request(input_ids=[5], max_tokens=1)
    asked.wanted = ["output_ids"]
    ((response, _),) = answered(engine_model, asked).sender.sent
    assert [tensor.label for tensor in response.tensors] == ["output_ids"]


@pytest.mark.parametrize(
    ("values", "complaint", "code"),
    [
        ({"input_ids": [5], "max_tokens": 0}, "invalid: max_tokens: ", "INVALID_ARG"),
        ({"max_tokens": 1}, "invalid: input_ids: ", "INVALID_ARG"),
        ({"stop": True}, "invalid: stop: true was given without a request id", "INVALID_ARG"),
    ],
)
def test_a_refusal_is_one_final_error(
    engine_model: Any, values: dict[str, Any], complaint: str, code: str
) -> None:
    ((response, flags),) = answered(engine_model, request(**values)).sender.sent
    assert str(response.error).startswith(complaint)
    assert (response.error.code, flags) == (getattr(triton_double.TritonError, code), FINAL)


def test_a_fault_of_ours_ends_its_request_and_no_other(engine_model: Any) -> None:
    bad, good = request(input_ids=[5], max_tokens=1), request(input_ids=[5], max_tokens=1)
    bad.tensors["no_such_tensor"] = np.array([[1]])
    engine_model.execute([bad, good])
    ((response, _),) = bad.sender.sent
    assert str(response.error).startswith("internal: engine: KeyError")
    assert answered(engine_model, request(input_ids=[5], max_tokens=1)).sender.sent
    assert good.sender.sent


def test_stop_cancels_by_id_and_is_answered_empty(engine_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[str] = []
    monkeypatch.setattr(engine_model.engine, "cancel", cancelled.append)
    ((response, flags),) = answered(engine_model, request("me", stop=True)).sender.sent
    assert (response.tensors, response.error, flags) == ([], None, FINAL)
    assert cancelled == ["me"]


def test_whether_the_client_has_gone_is_asked_for_rarely(
    triton: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    asked = request(input_ids=[5])
    sink = importlib.import_module("backends.causal_lm.triton.response_sink").ResponseSink(asked)
    assert not any(sink.is_cancelled() for _ in range(100))
    assert asked.sender.checks == 1
    asked.sender.cancelled = True
    now += 0.051
    assert all(sink.is_cancelled() for _ in range(100))
    assert asked.sender.checks == 2


def test_measurements_arrive_by_the_end_with_the_models_name(triton: ModuleType, tmp_path: Path) -> None:
    write_model(tmp_path / "1", ("attention",))
    model = importlib.import_module("backends.causal_lm.model").TritonPythonModel()
    model.initialize(arguments(tmp_path))
    answered(model, request(input_ids=[5, 6, 7], max_tokens=3, min_tokens=3))
    model.finalize()
    families = {family.name: family for family in triton_double.MetricFamily.made}
    assert set(families) == {f"trident_{name}" for name in FAMILIES}
    assert families["trident_prompt_tokens_total"].values == [3]
    assert sum(families["trident_generation_tokens_total"].values) == 3
    assert families["trident_num_requests_running"].values[-1] == 0
    assert len(families["trident_inter_token_latency_seconds"].values) == 2
    assert families["trident_num_slots"].labels == {"model": "tiny_engine", "version": "1"}


def test_a_model_that_tells_of_itself_answers_with_its_extra_tensors(
    triton: ModuleType, tmp_path: Path
) -> None:
    write_model(tmp_path / "1", ("attention",), figures=FIGURES)
    model = importlib.import_module("backends.causal_lm.model").TritonPythonModel()
    model.initialize(arguments(tmp_path, extras=("uncertainty", "cot_budget")))
    asked = request(input_ids=[5, 6], max_tokens=4, min_tokens=4)
    asked.wanted += ["uncertainty", "cot_budget"]
    ((response, _),) = answered(model, asked).sender.sent
    model.finalize()
    uncertainty = json.loads(response.values["uncertainty"][0])
    assert {len(column) for column in uncertainty["tokens"].values()} == {4}
    assert 0 < response.values["cot_budget"][0] <= LARGEST_FIGURE


@pytest.mark.parametrize(("figures", "extras"), [(FIGURES, ("uncertainty",)), ((), ("cot_budget",))])
def test_a_configuration_that_declares_other_extras_than_the_manifest_is_a_load_error(
    triton: ModuleType, tmp_path: Path, figures: tuple[str, ...], extras: tuple[str, ...]
) -> None:
    write_model(tmp_path / "1", ("attention",), figures=figures)
    model = importlib.import_module("backends.causal_lm.model").TritonPythonModel()
    with pytest.raises(LoadError, match=r"config\.pbtxt declares the extra outputs .*export the model again"):
        model.initialize(arguments(tmp_path, extras=extras))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine")]


def test_a_model_that_can_not_load_leaves_no_thread(triton: ModuleType, tmp_path: Path) -> None:
    model = importlib.import_module("backends.causal_lm.model").TritonPythonModel()
    with pytest.raises(Exception, match=r"manifest\.json"):
        model.initialize(arguments(tmp_path))
    assert not [thread for thread in threading.enumerate() if thread.name in {"metrics", "health"}]


def test_a_dead_engine_is_not_ready_and_unloads_itself(
    triton: ModuleType, engine_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_model.is_ready()
    monkeypatch.setattr(type(engine_model.engine), "healthy", property(lambda engine: False))
    assert not engine_model.is_ready()
    deadline = time.monotonic() + 20
    while "tiny_engine" not in triton.unloaded:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_tokenizer_answers_each_request_of_a_batch_for_itself(triton: ModuleType, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "1")
    model = importlib.import_module("backends.tokenizer.model").TritonPythonModel()
    model.initialize(arguments(tmp_path))
    good, bad = (
        InferenceRequest({"text_input": np.array([[text]], object)}, []) for text in (b"the cat", b"\xff")
    )
    answer, refusal = model.execute([good, bad])
    assert answer.error is None
    assert answer.values["prompt"] == [b"the cat"]
    assert answer.tensors[0].array.dtype == np.int32
    assert answer.tensors[0].array.shape[0] == 1
    assert str(refusal.error).startswith("invalid: text_input: not UTF-8")
    assert refusal.error.code == triton_double.TritonError.INVALID_ARG


def test_evidence_becomes_a_prompt_per_order(triton: ModuleType, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "1")
    model = importlib.import_module("backends.tokenizer.model").TritonPythonModel()
    model.initialize(arguments(tmp_path))
    tensors: dict[str, Any] = {
        "text_input": np.array([[b"{evidence}?"]], object),
        "evidence": np.array([[b"the cat", b"sat"]], object),
        "num_permutations": np.array([[2]], np.int32),
        "seed": np.array([[7]], np.uint64),
    }
    (answer,) = model.execute([InferenceRequest(tensors, [])])
    assert answer.error is None
    lengths, ids = answer.values["prompt_lengths"], answer.values["input_ids"]
    orders = [model.builder.from_text(text).input_ids.tolist() for text in ("the cat\nsat?", "sat\nthe cat?")]
    assert lengths == [len(order) for order in orders]
    assert ids == [token for order in orders for token in order]
    assert answer.values["prompt"] == [b"the cat\nsat?"]
    assert {tensor.array.dtype for tensor in answer.tensors[:2]} == {np.dtype(np.int32)}
    assert all(tensor.array.shape[0] == 1 for tensor in answer.tensors)

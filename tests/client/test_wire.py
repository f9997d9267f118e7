import json
import struct

import pytest
from tritonclient.grpc import InferResult

from client.wire import ENGINE_INPUTS, INPUTS, GenerateRequest, GenerateResponse, WireError, infer_input
from tests.client.triton_double import TIMINGS, infer_response


def decoded(tensor):
    return tensor.name(), tensor.datatype(), list(tensor.shape()), tensor._get_content()


def test_every_field_is_sent_with_the_contracts_type_and_a_leading_batch_axis():
    values = {
        "text_input": "héllo",
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "evidence": ["a", "日本"],
        "num_permutations": 2,
        "max_tokens": 5,
        "min_tokens": 1,
        "stop_words": ["a", "日本"],
        "bad_words": ["b", "c"],
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": -1.0,
        "frequency_penalty": 2.0,
        "seed": 2**64 - 1,
        "logit_bias": {7: -100.0},
        "guided_decoding_guide_type": "regex",
        "guided_decoding_guide": "a|ü",
        "stream": True,
        "exclude_input_in_output": False,
        "return_log_probs": True,
        "num_log_probs": 20,
        "session_id": "talk-1",
        "priority": -1,
        "timeout": 250,
        "user": "ann",
    }
    sent = {t.name(): decoded(t) for t in GenerateRequest(**values).infer_inputs()}
    # TensorRT-LLM's and vLLM's names of the same, and TensorRT-LLM's switches of what always comes.
    for_other_clients = {"min_length", "sampling_parameters"}
    for_other_clients |= {"return_num_input_tokens", "return_num_output_tokens"}
    assert set(sent) == set(INPUTS) - {"messages"} - for_other_clients
    for name, datatype, shape, _ in sent.values():
        assert datatype == INPUTS[name].datatype
        assert shape == [1, 2 if name in {"stop_words", "bad_words", "evidence"} else 1]
    assert sent["text_input"][3] == struct.pack("<I", 6) + "héllo".encode()
    assert sent["stop_words"][3] == b"\x01\x00\x00\x00a\x06\x00\x00\x00" + "日本".encode()
    assert sent["seed"][3] == b"\xff" * 8
    assert sent["top_p"][3] == struct.pack("<f", 0.25)
    assert sent["logit_bias"][3][4:] == b'{"7": -100.0}'
    assert sent["stream"][3] == b"\x01"


def test_an_unset_field_is_not_sent():
    assert [t.name() for t in GenerateRequest(text_input="a").infer_inputs()] == ["text_input"]


def test_messages_travel_as_json_with_their_characters_unescaped():
    (tensor,) = GenerateRequest(messages=[{"role": "user", "content": "ü🙂"}]).infer_inputs()
    content = tensor._get_content()[4:].decode()
    assert "ü🙂" in content
    assert json.loads(content) == [{"role": "user", "content": "ü🙂"}]


@pytest.mark.parametrize(
    "given", [{}, {"text_input": "a", "messages": []}, {"messages": [], "input_ids": [1]}]
)
def test_exactly_one_kind_of_prompt_is_required(given):
    with pytest.raises(WireError, match="give one of text_input, messages, input_ids"):
        GenerateRequest(**given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2**64),
        ("seed", -1),
        ("max_tokens", 2**31),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", 1e300),
        ("temperature", "warm"),
        ("stream", 1),
        ("text_input", "\ud800"),
        ("stop_words", [3]),
    ],
)
def test_a_value_that_does_not_fit_its_tensor_is_refused_by_name(name, value):
    with pytest.raises(WireError) as caught:
        infer_input(name, value)
    assert (caught.value.code, caught.value.field) == ("invalid", name)


def test_the_engine_takes_the_ensembles_inputs_but_for_the_prompt():
    prompt = {"text_input", "messages", "tools", "evidence", "num_permutations"}
    assert set(INPUTS) - set(ENGINE_INPUTS) == prompt
    assert set(ENGINE_INPUTS) - set(INPUTS) == {"input_ids", "prompt_lengths", "prompt", "stop"}


def test_a_response_is_read_in_full():
    message = infer_response(
        text_output="🙂 ok",
        output_ids=[5, -1, 2**31 - 1],
        finish_reason="stop",
        stop_reason="END",
        num_input_tokens=3,
        num_output_tokens=4,
        num_cached_tokens=2,
        cum_log_probs=-1.5,
        output_log_probs=[-0.5, -1.0],
        top_log_probs='[{"5": -0.5}, {"6": -1.0}]',
        timings=TIMINGS,
    )
    assert GenerateResponse.from_infer_result(InferResult(message)) == GenerateResponse(
        "🙂 ok",
        [5, -1, 2**31 - 1],
        "stop",
        "END",
        3,
        4,
        2,
        -1.5,
        [-0.5, -1.0],
        [{"5": -0.5}, {"6": -1.0}],
        {"queue_ns": 1, "prefill_ns": 2, "decode_ns": 3},
    )


def test_what_a_model_tells_of_itself_is_read_and_else_none():
    uncertainty = {"tokens": {"epistemic": [0.25]}, "mean": {"epistemic": 0.25}}
    message = infer_response(text_output="a", uncertainty=json.dumps(uncertainty), cot_budget=92)
    response = GenerateResponse.from_infer_result(InferResult(message))
    assert (response.uncertainty, response.cot_budget) == (uncertainty, 92)
    plain = GenerateResponse.from_infer_result(InferResult(infer_response(text_output="a")))
    assert (plain.uncertainty, plain.cot_budget) == (None, None)


@pytest.mark.parametrize("given", [{"evidence": ["a"]}, {"num_permutations": 2}])
def test_evidence_needs_a_prompt_of_text(given):
    with pytest.raises(
        WireError, match=f"invalid: {next(iter(given))}: token ids have no place for evidence"
    ):
        GenerateRequest(input_ids=[1], **given)


def test_empty_json_outputs_read_as_empty():
    message = infer_response(output_ids=[], top_log_probs="[]", timings="")
    response = GenerateResponse.from_infer_result(InferResult(message))
    assert (response.output_ids, response.top_log_probs, response.timings) == ([], [], {})


def test_an_output_outside_the_contract_is_named():
    message = infer_response(text_output="a")
    message.outputs[0].name = "surprise"
    with pytest.raises(WireError, match="internal: surprise: an output outside the contract"):
        GenerateResponse.from_infer_result(InferResult(message))


@pytest.mark.parametrize(
    ("text", "code", "field", "message"),
    [
        ("invalid: top_p: 2.0 is above 1", "invalid", "top_p", "2.0 is above 1"),
        ("in ensemble 'm', overloaded: queue: full: 64 wait", "overloaded", "queue", "full: 64 wait"),
        ("in ensemble 'm', timeout: timeout: no turn", "timeout", "timeout", "no turn"),
        ("[request id: 3] unavailable: engine: it stops", "unavailable", "engine", "it stops"),
        ("invalid: messages[0].role: 'x'\nis unknown", "invalid", "messages[0].role", "'x'\nis unknown"),
        (
            "Request for unknown model: 'gpt' is not found",
            "not_found",
            "model",
            "the server has no model 'gpt'",
        ),
        (
            "[request id: 4] unexpected inference input 'tools' for model 'smollm2'",
            "invalid",
            "tools",
            "this model was installed without it; export it again",
        ),
        ("something broke", "internal", "server", "something broke"),
        ("this is invalid: very much so", "internal", "server", "this is invalid: very much so"),
    ],
)
def test_errors_are_found_behind_the_servers_own_words(text, code, field, message):
    error = WireError.parse(text)
    assert (error.code, error.field, error.message) == (code, field, message)

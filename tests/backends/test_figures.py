"""A model's extra outputs: those of the step that each token was drawn from, for rows and streams alike."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from backends.causal_lm.figures import FigureLog, NonFiniteFigureError, Uncertainty
from backends.causal_lm.manifest import read_manifest
from backends.causal_lm.requests.request import Output
from backends.causal_lm.triton.tensors import arrays_from
from tests.backends.conftest import FIGURES, TOKENIZER, Harness, RecordingSink, ask
from tests.backends.tiny_graph import EOS, LARGEST_FIGURE

PROMPT = "the cat sat on the mat"
UNCERTAINTY = {"confidence", "epistemic", "aleatoric"}


def figures_after(directory: Path, ids: list[int]) -> dict[str, float]:
    """The reference: the whole text through a fresh session, no state kept."""
    session = ort.InferenceSession(directory / "model.onnx")
    states = read_manifest(directory / "manifest.json").states
    feed = {state.past: np.zeros((1, *state.shape), state.dtype) for state in states}
    feed |= {
        "input_ids": np.array([ids]),
        "positions": np.arange(len(ids))[None],
        "lengths": np.array([len(ids)]),
        "logits_at": np.array([[len(ids) - 1]]),
    }
    return {name: float(value[0, 0]) for name, value in zip(FIGURES, session.run(FIGURES, feed), strict=True)}


def expected_figures(directory: Path, sink: RecordingSink) -> dict[str, list[float]]:
    """Each answer token's figures, run anew."""
    prompt, answer = TOKENIZER.encode(PROMPT).ids, sink.token_ids
    steps = [figures_after(directory, [*prompt, *answer[:number]]) for number in range(len(answer))]
    return {name: [step[name] for step in steps] for name in UNCERTAINTY}


def told(output: Output) -> Uncertainty:
    assert output.uncertainty is not None
    return output.uncertainty


def test_a_tokens_figures_are_those_of_the_step_it_was_drawn_from(harness: Harness, telling: Path) -> None:
    engine = harness.start(telling, prefill_tokens=4, interleave_tokens=4)
    with harness.standing_still():
        others = [
            ask(engine, PROMPT[: 3 * n], max_tokens=3 * n, temperature=1.0, seed=n) for n in range(1, 6)
        ]
        sink = ask(engine, PROMPT, max_tokens=12, min_tokens=12)
    expected = expected_figures(telling, sink.wait())
    uncertainty = told(sink.outputs[0])
    assert set(uncertainty.tokens) == UNCERTAINTY
    for name, column in expected.items():
        # float32 sums in another order
        np.testing.assert_allclose(uncertainty.tokens[name], column, rtol=1e-4)
        assert uncertainty.mean is not None
        assert uncertainty.mean[name] == pytest.approx(np.mean(column), rel=1e-4)
    assert np.ptp(expected["epistemic"]) > 0.01 * LARGEST_FIGURE, "figures that never change prove nothing"
    assert all(other.wait().outputs[-1].uncertainty for other in others)


def test_the_budget_is_that_of_the_last_prompt_token_in_every_response(
    harness: Harness, telling: Path
) -> None:
    sink = ask(harness.start(telling), PROMPT, max_tokens=9, min_tokens=9, stream=True).wait()
    budget = figures_after(telling, TOKENIZER.encode(PROMPT).ids)["thought_budget"]
    assert {output.cot_budget for output in sink.outputs} == {round(budget)}


def test_a_streams_figures_joined_are_those_of_one_response(harness: Harness, telling: Path) -> None:
    engine = harness.start(telling)
    whole = told(ask(engine, PROMPT, max_tokens=20, min_tokens=20).wait().outputs[0])
    sink = ask(engine, PROMPT, max_tokens=20, min_tokens=20, stream=True).wait()
    pieces = [told(output) for output in sink.outputs]
    assert [piece.mean for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].mean == whole.mean
    for name in UNCERTAINTY:
        assert [value for piece in pieces for value in piece.tokens[name]] == list(whole.tokens[name])
        for output, piece in zip(sink.outputs, pieces, strict=True):
            assert len(piece.tokens[name]) == len(output.token_ids)


def test_an_answer_without_a_token_has_a_budget_and_no_mean(harness: Harness, telling: Path) -> None:
    sink = ask(harness.start(telling), PROMPT, logit_bias=f'{{"{EOS}": 100}}').wait()
    budget = figures_after(telling, TOKENIZER.encode(PROMPT).ids)["thought_budget"]
    assert (sink.token_ids, told(sink.outputs[0]).mean) == ([], None)
    assert sink.outputs[0].cot_budget == round(budget)


def test_a_model_that_tells_nothing_answers_without(harness: Harness, directory: Path) -> None:
    (output,) = ask(harness.start(directory), PROMPT, max_tokens=3).wait().outputs
    assert (output.uncertainty, output.cot_budget) == (None, None)
    assert not {"uncertainty", "cot_budget"} & arrays_from(output).keys()


def test_a_figure_that_is_no_number_fails_its_request_alone(harness: Harness, telling: Path) -> None:
    engine = harness.start(telling)
    expected = ask(engine, PROMPT, max_tokens=9, min_tokens=9).wait().token_ids
    decode = harness.runner.decode

    def poisoned(tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        logits = decode(tokens, positions)
        harness.runner.figures[1:] = np.nan
        return logits

    harness.runner.decode = poisoned  # type: ignore[method-assign]
    with harness.standing_still():
        first, second = (ask(engine, PROMPT, max_tokens=9, min_tokens=9) for _ in range(2))
    assert first.wait().token_ids == expected
    assert second.wait().failure is not None
    assert "the graph's epistemic, thought_budget" in second.failure[1]


def log_of(*rows: tuple[float, float, float]) -> FigureLog:
    log = FigureLog(("epistemic", "thought_budget", "confidence"))
    for row in rows:
        log.add(np.array([row], np.float32), shown=True)
    return log


def test_the_tensors_are_json_and_an_integer() -> None:
    log = log_of((0.1, 91.6, 0.3), (0.2, 400.0, 1 / 3))
    output = Output("", (5, 6), 1, 2, uncertainty=log.take(is_last=True), cot_budget=log.budget)
    arrays = arrays_from(output)
    assert json.loads(arrays["uncertainty"][0, 0]) == {
        "tokens": {"confidence": [0.3, 0.333333], "epistemic": [0.1, 0.2]},
        "mean": {"confidence": 0.316667, "epistemic": 0.15},
    }
    assert (arrays["cot_budget"].tolist(), arrays["cot_budget"].dtype) == ([[92]], np.int32)


def test_before_its_prompt_is_read_a_request_has_neither_figures_nor_budget() -> None:
    log = log_of()
    assert log.budget == 0
    assert log.take(is_last=True) == Uncertainty({"confidence": (), "epistemic": ()}, None)


def test_of_several_rows_the_mean_is_told() -> None:
    log = FigureLog(("confidence", "thought_budget"))
    log.add(np.array([(0.2, 10.0), (0.4, 30.0)], np.float32), shown=True)
    uncertainty = log.take(is_last=True)
    assert uncertainty is not None
    assert uncertainty.tokens["confidence"] == pytest.approx([0.3])
    assert log.budget == 20


def test_a_token_that_is_not_shown_does_not_count() -> None:
    log = log_of((0.5, 1.0, 0.5))
    log.add(np.array([(0.9, 1.0, 0.9)], np.float32), shown=False)
    uncertainty = log.take(is_last=True)
    assert uncertainty is not None
    assert uncertainty.mean == {"confidence": 0.5, "epistemic": 0.5}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_figure_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(NonFiniteFigureError, match="epistemic, thought_budget, confidence are"):
        log_of((0.1, value, 0.2))

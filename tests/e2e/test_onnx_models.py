"""Real ONNX graphs, imported, and answering over the embedded Triton with the numbers of ONNX Runtime."""

import asyncio
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from export.graph_import import GraphOptions, import_graph
from tests.backends import onnx_graphs
from tests.e2e.conftest import RunningTriton, running_triton
from tests.packaged_graphs import MAGIKA, SILERO, packaged

pytestmark = pytest.mark.triton

Arrays = dict[str, NDArray[Any]]
SAMPLE_RATE, WINDOW, CONTEXT = 16_000, 512, 64
# One kernel on equal inputs; alone and in a batch it may sum in another order.
ATOL = 1e-5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """magika and silero-vad as imported, and graphs without any config.pbtxt."""
    repository = tmp_path_factory.mktemp("graphs") / "repository"
    for name, place in (("magika", MAGIKA), ("silero-vad", SILERO)):
        import_graph(GraphOptions(name, packaged(*place), repository), lambda *_: None)
    onnx_graphs.lookup(repository / "lookup" / "1" / "model.onnx")
    onnx_graphs.same(repository / "words" / "1" / "model.onnx", onnx_graphs.STRING)
    stray = repository / "stray" / "1"
    stray.mkdir(parents=True)
    onnx_graphs.with_external(stray / "model.onnx", "../../secret.bin")
    np.ones(4, np.float32).tofile(repository / "secret.bin")
    renamed = onnx_graphs.affine(repository / "renamed" / "3" / "other.onnx").parent.parent
    (renamed / "config.pbtxt").write_text(
        'backend: "onnxruntime" default_model_filename: "other.onnx" max_batch_size: 2 '
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } } '
    )
    with running_triton(repository) as running:
        yield running


@pytest.fixture
def client(server: RunningTriton) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


def inputs_from(arrays: Arrays) -> list[triton.InferInput]:
    made = []
    for name, array in arrays.items():
        made.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


def ask(client: triton.InferenceServerClient, model: str, arrays: Arrays) -> Arrays:
    result = client.infer(model, inputs_from(arrays))
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def plain(place: tuple[str, str]) -> ort.InferenceSession:
    return ort.InferenceSession(packaged(*place), providers=["CPUExecutionProvider"])


def file_windows(count: int) -> NDArray[np.int32]:
    """As magika reads files: the first and the last 1,024 bytes, 256 where there are none."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (count, 2048)).astype(np.int32)
    rows[:, 700:1024] = 256
    return rows


def test_magika_answers_as_plain_onnx_runtime(client: triton.InferenceServerClient) -> None:
    rows = file_windows(5)
    (expected,) = plain(MAGIKA).run(None, {"bytes": rows})
    found = ask(client, "magika", {"bytes": rows})["target_label"]
    np.testing.assert_allclose(found, expected, atol=ATOL)
    assert found.argmax(1).tolist() == expected.argmax(1).tolist()


async def test_concurrent_requests_are_batched_and_get_their_own_rows(server: RunningTriton) -> None:
    rows = file_windows(24)
    (expected,) = plain(MAGIKA).run(None, {"bytes": rows})
    async with triton_aio.InferenceServerClient(server.grpc) as client:
        asked = [client.infer("magika", inputs_from({"bytes": rows[row : row + 1]})) for row in range(24)]
        answers = [answer.as_numpy("target_label") for answer in await asyncio.gather(*asked)]
        statistics = await client.get_inference_statistics("magika")
    np.testing.assert_allclose(np.concatenate(answers), expected, atol=ATOL)
    (counted,) = statistics.model_stats
    assert counted.execution_count < counted.inference_count, "nothing ran together"


def test_silero_hears_with_its_state_passed_from_call_to_call(client: triton.InferenceServerClient) -> None:
    """Its state goes in and comes out as a tensor: to the server it is stateless."""
    session = plain(SILERO)
    time = np.arange(12 * WINDOW, dtype=np.float32) / SAMPLE_RATE
    sound = np.sin(2 * np.pi * 140 * time) * np.sin(2 * np.pi * 3 * time)
    rate = np.array(SAMPLE_RATE, np.int64)
    state = own = np.zeros((2, 1, 128), np.float32)
    for start in range(CONTEXT, len(sound) - WINDOW, WINDOW):
        window = sound[None, start - CONTEXT : start + WINDOW].astype(np.float32)
        expected, own = session.run(None, {"input": window, "state": own, "sr": rate})
        found = ask(client, "silero-vad", {"input": window, "state": state, "sr": rate[None]})
        state = found["stateN"]
        np.testing.assert_allclose(found["output"], expected, atol=ATOL)
        np.testing.assert_allclose(state, own, atol=ATOL)


def test_without_a_configuration_the_graph_is_asked(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("lookup").config
    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    assert [(port.name, list(port.dims)) for port in config.input] == [("index", [-1])]
    assert ask(client, "lookup", {"index": np.array([[2]])})["row"].tolist() == [[[4.0, 5.0]]]


async def test_a_faulty_request_fails_alone(server: RunningTriton) -> None:
    async with triton_aio.InferenceServerClient(server.grpc) as client:
        asked = [
            client.infer("lookup", inputs_from({"index": np.array([[index]])})) for index in (0, 9, 1, 3)
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers[1], InferenceServerException)
    assert "invalid: graph: " in str(answers[1])
    rows = [answer.as_numpy("row")[0, 0, 0] for index, answer in enumerate(answers) if index != 1]
    assert rows == [0.0, 2.0, 6.0]


def test_strings_and_a_file_of_another_name(client: triton.InferenceServerClient) -> None:
    words = np.array([["Größe".encode(), b"", "🦊".encode()]], np.object_)
    assert ask(client, "words", {"x": words})["y"].tolist() == words.tolist()
    found = ask(client, "renamed", {"x": np.array([[1, 2]], np.float32)})
    assert found["y"].tolist() == [[3.0, 5.0]]


def test_a_graph_with_weights_outside_its_directory_is_not_loaded(server: RunningTriton) -> None:
    statuses = {status.name: status for status in server.server.models}
    assert not statuses["stray"].ready
    assert "escapes model directory" in statuses["stray"].reason
    assert all(statuses[name].ready for name in ("magika", "silero-vad", "lookup", "words", "renamed"))


def test_a_new_version_is_served_after_a_load(server: RunningTriton) -> None:
    directory = server.repository / "renamed"
    shutil.copytree(directory / "3", directory / "4")
    onnx_graphs.same(directory / "4" / "other.onnx", onnx_graphs.FLOAT)
    with triton.InferenceServerClient(server.grpc) as client:
        client.load_model("renamed")
        assert ask(client, "renamed", {"x": np.array([[1, 2]], np.float32)})["y"].tolist() == [[1.0, 2.0]]

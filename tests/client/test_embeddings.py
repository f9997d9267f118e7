"""What is sent for texts and token ids, and what an answer must hold."""

import numpy as np
import pytest

from client.embeddings import embeddings_from, infer_inputs, target_of
from client.wire import WireError


class Result:
    """An answer with these tensors."""

    def __init__(self, **arrays):
        self.arrays = arrays

    def as_numpy(self, name):
        return self.arrays.get(name)


def sent(texts):
    return {tensor.name(): (tensor.datatype(), tensor.shape()) for tensor in infer_inputs(texts)}


def test_strings_go_to_the_ensemble_and_token_ids_past_its_tokenizer():
    assert target_of("m", ["a"]) == "m_embedding"
    assert target_of("m", [[1]]) == "m_embedder"
    assert sent(["a", "b", "c"]) == {"text_input": ("BYTES", [3, 1])}
    assert sent([[1], [2] * 17]) == {"input_ids": ("INT64", [2, 32]), "attention_mask": ("INT64", [2, 32])}


def test_vectors_travel_as_little_endian_float32():
    vectors = np.array([[1.0, -0.5], [0.25, 2.0]], np.float32)
    made = embeddings_from(Result(embedding=vectors, num_tokens=np.array([[3], [4]], np.int32)), ["a", "b"])
    assert [np.frombuffer(vector, "<f4").tolist() for vector in made.vectors] == vectors.tolist()
    assert made.num_tokens == 7
    assert embeddings_from(Result(embedding=vectors), [[1, 2], [3]]).num_tokens == 3


@pytest.mark.parametrize("arrays", [{}, {"embedding": np.zeros((1, 2), np.float32)}])
def test_an_answer_without_a_vector_for_each_text_is_an_error(arrays):
    with pytest.raises(WireError, match="no vector for each of 2 texts"):
        embeddings_from(Result(**arrays), ["a", "b"])

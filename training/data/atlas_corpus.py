"""Atlas as a corpus."""

from collections.abc import Iterable

from tokenizers import Tokenizer

from training.chat import ChatFormat, render, segments
from training.data.atlas import Atlas
from training.data.batches import PaddedBatches, cut_rows, encode
from training.data.corpus import PreparedData, Shape, join_until, pad_all
from training.tokenizer import chat_format

TOKENIZER_EPOCHS = 2
VALIDATION_BATCH = 64


class AtlasCorpus:
    """Conversations drawn without end; held out are pairs of fact and phrasing (training/data/atlas.py)."""

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas

    def texts(self, chat: ChatFormat) -> Iterable[str]:
        """Two epochs of training text."""
        conversations = map(self.atlas.conversation, range(TOKENIZER_EPOCHS * self.atlas.epoch_length))
        return (text for conversation in conversations for text, _ in segments(conversation, chat))

    def prepare(self, tokenizer: Tokenizer, shape: Shape) -> PreparedData:
        """Batches of like length, the validation pairs with their answers, and the three test sets.

        There are fewer validation pairs than `held_out` wants tokens: the held-out pairs follow them.
        """
        atlas, chat, most = self.atlas, chat_format(tokenizer), shape.max_tokens
        validation, held_out = atlas.validation()[: shape.num_cases], atlas.held_out()[: shape.num_cases]
        rows = cut_rows(encode([case.conversation for case in validation], tokenizer), most)
        texts = (
            render(case.conversation.messages, add_generation_prompt=False, chat=chat)
            for case in (*validation, *held_out)
        )
        return PreparedData(
            batches=PaddedBatches(
                atlas, tokenizer, batch_size=shape.batch_size, seed=shape.seed, max_tokens=most
            ),
            validation=pad_all(rows, tokenizer, batch_size=VALIDATION_BATCH),
            held_out=join_until(texts, tokenizer),
            summary=f"{len(atlas.facts):,} facts in many phrasings, validated on {len(validation)} held-out "
            "pairs of the two",
            test_sets={
                "held_out": held_out,
                "unseen_templates": atlas.unseen_templates()[: shape.num_cases],
                "out_of_domain": atlas.out_of_domain()[: shape.num_cases],
            },
        )

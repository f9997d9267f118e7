"""`make bench-training`: what the trainer costs beside a plain loop, and retention beside attention.

The trainer and a loop of a few lines take the same steps on the same batches, in turns; so do a retention and
an attention of equal width, forwards and backwards over one long sequence. Only the ratios mean anything.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bench.measure import Row, compare, in_turns, print_table, write_results
from training.blocks.block import MIXERS
from training.blocks.forward_pass import ForwardPass
from training.blocks.rotary import Rotary
from training.blocks.router import summarize_routing
from training.chat import CHAT_FORMATS
from training.config import MixerName, ModelConfig
from training.data.batches import IGNORED, Batch
from training.data.load import load_corpus
from training.decoder import Decoder
from training.lowering import Eager
from training.optimizer import BETAS, learning_rate
from training.recipes import Recipe, recipe
from training.tokenizer import train_tokenizer
from training.trainer import Trainer, reproducible

RESULTS = Path(__file__).parent / "results" / "training.json"
TRAINER_GOAL, RETENTION_GOAL = 0.95, 1.0


class Steps:
    """A few batches, over and over: made once, so that making them is nobody's time."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self.steps_per_epoch = len(batches)
        self.num_tokens = sum(batch.num_valid for batch in batches)

    def __getitem__(self, step: int) -> Batch:
        return self._batches[step % len(self._batches)]


class PlainLoop:
    """The same step written down without a trainer."""

    def __init__(self, known: Recipe, batches: Steps) -> None:
        torch.manual_seed(known.seed)
        self.known, self.batches, self.step = known, batches, 0
        self.decoder = Decoder(known.model)
        parameters = list(self.decoder.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": known.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=known.learning_rate, betas=BETAS, fused=True)

    def train_step(self) -> float:
        """Learn from the next batch; the cross entropy."""
        batch = self.batches[self.step]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.known, self.step)
        routing: list[Tensor] = []
        learned = batch.targets != IGNORED
        logits, _ = self.decoder(batch.input_ids, only=learned, routing=routing)
        loss = F.cross_entropy(logits, batch.targets[learned])
        routed = summarize_routing(self.known.model, routing, batch.valid).loss if routing else 0.0
        (loss + routed).backward()
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), self.known.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.item()


def batches_of(known: Recipe, count: int) -> tuple[Recipe, Steps]:
    """The first batches of a recipe, and the recipe with its tokenizer's true vocabulary."""
    corpus, chat = load_corpus(known.data, seed=known.seed), CHAT_FORMATS[known.chat]
    tokenizer = train_tokenizer(corpus.texts(chat), vocab_size=known.model.vocab_size, chat=chat)
    model = known.model.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    known = known.model_copy(update={"model": model})
    data = corpus.prepare(tokenizer, known.shape)
    return known, Steps([data.batches[step] for step in range(count)])


def rate(train_step: Callable[[], object], batches: Steps) -> float:
    """Tokens per second over all of the batches once."""
    began = time.perf_counter()
    for _ in range(batches.steps_per_epoch):
        train_step()
    return batches.num_tokens / (time.perf_counter() - began)


def bench_trainer(name: str, arguments: argparse.Namespace) -> Row:
    """The trainer against the loop on one recipe."""
    known, batches = batches_of(recipe(name), arguments.steps)
    torch.manual_seed(known.seed)
    trainer, loop = Trainer(known, Decoder(known.model), batches, []), PlainLoop(known, batches)
    with reproducible(threads=known.threads):
        figures = in_turns(
            {
                "trainer": partial(rate, trainer.train_step, batches),
                "loop": partial(rate, loop.train_step, batches),
            },
            arguments.rounds,
        )
    _check_same(trainer, loop)
    return compare(
        f"{name}, {arguments.steps} steps", ours=figures["trainer"], peer=figures["loop"],
        peer_name="plain loop", goal=TRAINER_GOAL,
    )  # fmt: skip


def _check_same(trainer: Trainer, loop: PlainLoop) -> None:
    """A loop that computes something else would be no measure."""
    theirs = loop.decoder.own_tensors()
    for name, tensor in trainer.decoder.own_tensors().items():
        assert torch.equal(tensor, theirs[name]), (
            f"{name}: the loop and the trainer learned different weights"
        )


def mixer_config(mixer: MixerName, width: int, length: int) -> ModelConfig:
    """One layer of `width` whose heads are 64 wide, a retention's values twice that."""
    return ModelConfig(
        vocab_size=8,
        max_length=length,
        d_model=width,
        num_layers=1,
        num_heads=width // 64,
        num_kv_heads=width // 64,
        head_dim=64,
        value_dim=128,
        d_ff=8,
        mixer=mixer,
        ffn="mlp",
    )


def mixer_rate(mixer: MixerName, width: int, length: int, threads: int) -> Callable[[], float]:
    """What measures tokens per second, forwards and backwards, of one sequence through a mixer."""
    config = mixer_config(mixer, width, length)
    torch.manual_seed(0)
    block, x = MIXERS[mixer](config), torch.randn(1, length, width, requires_grad=True)
    rotary = Rotary(config.head_dim, length, config.rope_theta)
    step = ForwardPass(torch.arange(length)[None], None, rotary, Eager())

    def measure() -> float:
        with reproducible(threads=threads):
            began = time.perf_counter()
            y, _ = block(x, None, step)
            y.square().mean().backward()
            return length / (time.perf_counter() - began)

    return measure


def bench_retention(arguments: argparse.Namespace) -> Row:
    """Chunkwise retention against attention."""
    width, length = arguments.width, arguments.length
    names: tuple[MixerName, MixerName] = ("retention", "attention")
    contenders = {name: mixer_rate(name, width, length, arguments.threads) for name in names}
    figures = in_turns(contenders, arguments.rounds)
    return compare(
        f"retention, width {width}, T={length}", ours=figures["retention"], peer=figures["attention"],
        peer_name="attention", goal=RETENTION_GOAL,
    )  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make bench-training ARGS=…", description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["atlas", "llama-tiny"])
    parser.add_argument("--steps", type=int, default=16, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds, after one that is not")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2, help="of the mixers; a recipe has its own")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    arguments = parse_arguments()
    rows = [bench_trainer(name, arguments) for name in arguments.recipes]
    rows.append(bench_retention(arguments))
    print_table(rows)
    write_results(rows, RESULTS)


if __name__ == "__main__":
    main()

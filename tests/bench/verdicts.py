"""What the result files say about the targets: a function for each, from a file's content to its figures."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from backends.causal_lm.settings import EngineSettings
from tests.bench.goals import LIMITS, MEMORY, best_peer
from tests.bench.guided import GOAL as GUIDED_GOAL
from tests.bench.measure import Row
from tests.bench.perplexity import GOALS as PERPLEXITY_GOALS
from tests.bench.position import GOAL as POSITION_GOAL
from tests.bench.serving import ENGINE, FIRST_GOAL_MS, OURS
from tests.bench.soak import MOST_DRIFT
from tests.bench.soak import SECONDS as SOAK_SECONDS

Results = Any  # JSON as a bench has written it


@dataclass(frozen=True)
class Verdict:
    """A figure with its spread, and its goal; `met` is None where it is only told."""

    subject: str
    measured: str
    goal: str = ""
    met: bool | None = None


def beside_best_peer(workloads: tuple[str, ...], results: Results) -> Iterator[Verdict]:
    """Each model and precision at workloads whose names begin so, beside the best of the peers."""
    chosen = [row for row in _rows(results) if row.name.split(", ", 1)[1].startswith(workloads)]
    for rows in _by_name(row for row in chosen if row.peer_name not in LIMITS):
        yield _of_row(best_peer(rows))


def beside_memory(results: Results) -> Iterator[Verdict]:
    """One stream, beside the weights read once a token."""
    yield from (_of_row(row) for row in _rows(results) if row.peer_name == MEMORY)


def over_http(results: Results) -> Iterator[Verdict]:
    """The rate beside the best of llama.cpp's servers, and what a user feels at both."""
    felt = _felt(results)
    for rows in _by_name(row for row in _rows(results) if row.peer_name != ENGINE):
        best = best_peer(rows)
        yield _of_row(best)
        for part, text in (("first", "to the first text"), ("between", "between texts")):
            ours, theirs = (felt[best.name, who][part] for who in (OURS, best.peer_name))
            measured = f"{ours[0]:,.0f} / {ours[1]:,.0f}, theirs {theirs[0]:,.0f} / {theirs[1]:,.0f}"
            yield Verdict(f"ms {text}, p50 / p99", measured)


def stack_cost(results: Results) -> Iterator[Verdict]:
    """The rate over HTTP beside the engine's alone."""
    yield from (_of_row(row) for row in _rows(results) if row.peer_name == ENGINE)


def stack_delay(results: Results) -> Iterator[Verdict]:
    """How much later the first text comes over HTTP than out of the engine, medians."""
    felt = _felt(results)
    for name in dict.fromkeys(name for name, who in felt if who == ENGINE):
        ours, engine = (felt[name, who]["first"][0] for who in (OURS, ENGINE))
        measured = f"{ours - engine:.1f} ms ({ours:.1f} - {engine:.1f})"
        yield Verdict(name, measured, f"≤ {FIRST_GOAL_MS:g} ms", ours - engine <= FIRST_GOAL_MS)


def second_turn(results: Results) -> Iterator[Verdict]:
    """The first token over a remembered history beside one read anew."""
    for turn in results["turns"]:
        low, high = turn["spread"]
        measured = f"{turn['ratio']:.3f} × ({low}-{high}), {turn['warm']} beside {turn['cold']} ms"
        yield Verdict(turn["model"], measured, f"≤ {turn['goal']:g}", turn["met"])


def late_token(results: Results) -> Iterator[Verdict]:
    """A token at the last position beside one at the first."""
    first, last = (choose(timing["position"] for timing in results["timings"]) for choose in (min, max))
    for timing in results["timings"]:
        if timing["position"] == last:
            ratio = timing["ratio"]
            measured = f"{ratio:.2f} × ({_range(timing['spread'])}), {timing['median']:.2f} ms"
            goal = (f"≤ {POSITION_GOAL:g}", ratio <= POSITION_GOAL) if timing["model"] == "retention" else ()
            yield Verdict(f"{timing['model']}, at {last:,} / at {first:,}", measured, *goal)


def parked_chats(results: Results) -> Iterator[Verdict]:
    """How soon a parked chat goes on, what it takes, and how many there is room for."""
    for each in results["resumed"]:
        measured = f"p99 {each['p99']} ms (p50 {each['p50']}, longest {each['longest']})"
        yield Verdict(f"resumed from {each['tier']}", measured, f"≤ {each['goal']:g} ms", each["met"])
    sizes, lengths = ([row[name] for row in results["memory"]] for name in ("retention", "tokens"))
    subject, measured = f"state at {min(lengths):,} to {max(lengths):,} tokens", f"{_range(sizes)} bytes"
    yield Verdict(subject, measured, "the same", len(set(sizes)) == 1)
    for row in results["memory"]:
        if row["goal"] is not None:
            retention, attention = row["chats_in_a_gb"]
            measured = f"{row['ratio']:g} × ({retention:,} beside {attention:,})"
            subject = f"chats in 1 GB at {row['tokens']:,} tokens"
            yield Verdict(subject, measured, f"≥ {row['goal']:g}", row["ratio"] >= row["goal"])


def beside_a_long_prompt(results: Results) -> Iterator[Verdict]:
    """What running streams feel, with the chunks that a server reads."""
    for row in results["rows"]:
        if row["interleave_tokens"] == EngineSettings().interleave_tokens:
            ratio, goal = row["ratio of p99"], results["goal"]
            measured = f"p99 {ratio:.2f} × ({row['p99 beside']} beside {row['p99 alone']} ms)"
            yield Verdict(f"chunks of {row['interleave_tokens']}", measured, f"≤ {goal:g}", ratio <= goal)


def experts(results: Results) -> Iterator[Verdict]:
    """Experts at decode beside a dense feed-forward of the active size."""
    for cost in results["costs"]:
        if cost["rows"] == 1:
            ratio, goal = cost["ratio"], results["goal"]
            measured = f"{ratio:.2f} × ({_range(cost['spread'])})"
            yield Verdict(f"{cost['precision']}, one row", measured, f"≤ {goal:g}", ratio <= goal)


def perplexity(results: Results) -> Iterator[Verdict]:
    """The dearest text of each precision."""
    exact = {row["precision"]: row["perplexity"] for row in reversed(results["rows"])}["fp32"]
    for row in results["rows"]:
        goal = PERPLEXITY_GOALS.get(row["precision"])
        if goal is not None:
            costs = {text: value / exact[text] for text, value in row["perplexity"].items()}
            told = ", ".join(f"{cost - 1:+.2%} on {text}" for text, cost in costs.items())
            met = bool(costs) and max(costs.values()) <= goal
            yield Verdict(row["precision"], told or "refused by its proof", f"≤ {goal - 1:+.1%}", met)


def export(results: Results) -> Iterator[Verdict]:
    """From the packaged file to an installed and compared model."""
    for row in results["rows"]:
        goal, memory_goal = row["goal_seconds"], row["goal_memory"]
        subject = f"{row['model']} {row['precision']}"
        measured = f"{row['seconds']:.0f} s ({_range(row['spread'])})"
        yield Verdict(subject, measured, f"≤ {goal:g} s", row["seconds"] <= goal)
        measured = f"peak memory {row['memory']:.2f} × the weights in fp32"
        yield Verdict(subject, measured, f"≤ {memory_goal:g}", row["memory"] <= memory_goal)


def start(results: Results) -> Iterator[Verdict]:
    """How long a newcomer waits."""
    measured = f"{results['seconds']:.1f} s ({_range(results['spread'])})"
    yield Verdict(
        results["model"], measured, f"≤ {results['goal']:g} s", results["seconds"] <= results["goal"]
    )


def gateway(results: Results) -> Iterator[Verdict]:
    """Whole chats through the gateway, before a Triton that answers at once."""
    for row in results["rows"]:
        low, high = row["spread"]
        measured = f"{row['rate']:,.0f}/s ({low:,.0f}-{high:,.0f}), p95 {row['p95_ms']:.0f} ms"
        goal = f"≥ {row['goal']:,.0f}/s, p95 < {row['goal_p95_ms']:g} ms"
        yield Verdict(f"{row['connections']} connections", measured, goal, row["met"])


def guiding(results: Results) -> Iterator[Verdict]:
    """The guide that costs the most."""
    worst = max(results["rows"], key=lambda row: row["ratio"])
    streams = f"{worst['streams']} stream{'s' * (worst['streams'] > 1)}"
    subject = f"{worst['guide']}, {streams}, dearest of {len(results['rows'])}"
    measured = f"{worst['ratio']:.2f} × ({worst['spread']})"
    yield Verdict(subject, measured, f"≤ {GUIDED_GOAL:g}", worst["ratio"] <= GUIDED_GOAL)


def soak(results: Results) -> Iterator[Verdict]:
    """Memory and counters after the load; a shorter one than meant shows nothing."""
    met = results["seconds"] >= SOAK_SECONDS and not results["wrong"]
    measured = f"memory {results['drift']:+.1%}, {', '.join(results['wrong']) or 'nothing wrong'}"
    subject = f"{results['clients']} clients, {results['requests']:,} requests in {results['seconds']:g} s"
    yield Verdict(subject, measured, f"≤ {MOST_DRIFT:.0%} in {SOAK_SECONDS:g} s", met)


def _rows(results: Results) -> list[Row]:
    return [Row(**row) for row in results["rows"]]


def _by_name(rows: Iterable[Row]) -> Iterable[list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.name].append(row)
    return found.values()


def _of_row(row: Row) -> Verdict:
    measured = f"{row.ratio:.2f} × {row.peer_name} ({row.spread})"
    if row.goal is None:
        return Verdict(row.name, measured)
    return Verdict(row.name, measured, f"≥ {row.goal:g}", row.met)


def _felt(results: Results) -> dict[tuple[str, str], dict[str, list[float]]]:
    return {(each["name"], each["who"]): each["latency"] for each in results["latencies"]}


def _range(values: Sequence[float]) -> str:
    return "-".join(dict.fromkeys(f"{end(values):,}" for end in (min, max)))

"""Runs in the peers' environment: what the result files say, as pictures beside them (`make bench-plots`)."""

import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Draw what has been measured; a file that is missing is left out."""
    drawings = {
        "latest.json": throughput,
        "serving.json": latency,
        "position.json": position,
        "sessions.json": chats,
    }
    for name, draw in drawings.items():
        if (RESULTS / name).exists():
            draw(json.loads((RESULTS / name).read_text()))
        else:
            print(f"no {name}: its bench has not run")


def throughput(results: dict) -> None:
    """Tokens per second against streams, a picture for each model and precision."""
    lines = defaultdict(lambda: defaultdict(dict))
    for row in results["rows"]:
        subject, workload = row["name"].split(", ", 1)
        if "stream" in workload:
            lines[subject]["trident"][row["streams"]] = row["ours"]
            lines[subject][row["peer_name"]][row["streams"]] = row["peer"]
    for subject, series in lines.items():
        _draw(f"throughput-{subject}", series, "streams", "tokens/s")


def latency(results: dict) -> None:
    """Median milliseconds to the first text, and between texts, against clients."""
    for part in ("first", "between"):
        series = defaultdict(dict)
        for each in results["latencies"]:
            precision = each["name"].split(" over ")[0]
            series[f"{each['who']}, {precision}"][each["streams"]] = each["latency"][part][0]
        _draw(f"latency-{part}", series, "clients", f"ms, {part}, median")


def position(results: dict) -> None:
    """Milliseconds of a token, and what a chat's state takes, against its position."""
    for name, field, unit in (
        ("position", "median", "ms a token"),
        ("memory", "state_bytes", "bytes a chat"),
    ):
        series = defaultdict(dict)
        for each in results["timings"]:
            if field in each:
                series[each["model"]][each["position"]] = each[field]
        if series:
            _draw(name, series, "tokens in the chat", unit)


def chats(results: dict) -> None:
    """Megabytes that parked chats take, of retention whatever their length, of attention by it."""
    series = defaultdict(dict)
    for row in results["memory"]:
        for number in (10**power for power in range(5)):
            series["retention, any length"][number] = number * row["retention"] / 2**20
            series[f"attention, {row['tokens']:,} tokens each"][number] = number * row["attention"] / 2**20
    _draw("memory-chats", series, "parked chats", "MiB", scale="log")


def _draw(
    name: str, series: dict[str, dict[int, float]], across: str, up: str, scale: str = "linear"
) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for label, points in series.items():
        axes.plot(*zip(*sorted(points.items()), strict=True), marker="o", label=label)
    axes.set(xlabel=across, ylabel=up, title=name, xscale=scale, yscale=scale)
    if scale == "linear":
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path = RESULTS / f"{name.replace(' ', '-')}.svg"
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)
    print(f"drawn: {path}")


if __name__ == "__main__":
    main()

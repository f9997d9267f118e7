"""The event stream's figures as TensorBoard scalars."""

import shutil
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

GROUPS = {"step": "train", "validation": "validation"}  # event -> the scalars' first name


class TensorBoard:
    """Writes the scalars of each event into `directory`, from the first: `events.jsonl` remains the source.

    What lies in `directory` is replaced, so after a resume there is one line, not two.
    """

    def __init__(self, directory: Path) -> None:
        if directory.exists():
            shutil.rmtree(directory)
        self._writer = SummaryWriter(str(directory), flush_secs=10)

    def write(self, event: dict[str, Any]) -> None:
        """Add an event's numbers; a list of loads becomes one scalar per layer and expert."""
        if event["event"] not in GROUPS:
            return
        group, step = GROUPS[event["event"]], event["step"]
        for name, value in event.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{group}/{name}", value, step)
        for layer, shares in enumerate(event.get("expert_load", [])):
            for expert, share in enumerate(shares):
                self._writer.add_scalar(f"experts/layer {layer}/{expert}", share, step)
        self._writer.flush()

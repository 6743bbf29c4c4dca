"""What a run tells: one JSON object a line, and TensorBoard."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from cris_edge.files import whole_file
from cris_edge.photo import as_photo

LOG = "log.jsonl"
BOARD = "tensorboard"


class RunLog:
    """`log.jsonl` and `tensorboard/` in a run's folder."""

    def __init__(self, out: Path, step: int, epoch: int = 0):
        """Go on at `step`, `epoch` epochs being over: what an interrupted run told of later ones is
        taken out.
        """
        self.path = out / LOG
        taken, kept = self._take_back(step, epoch)
        _leave_the_second(out / BOARD)
        # Figures of an epoch that was not over yet stand at the very step: then the curves lose the
        # whole of that step, and get back what stays of it.
        again = any(record.get("step") == step for record in taken)
        self.board = SummaryWriter(str(out / BOARD), purge_step=step if again else step + 1)
        for record in kept if again else ():
            if record["step"] == step:
                self._draw(record)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record: a line, and every number in it as a curve over its `step`."""
        with self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
        self._draw(record)

    def _take_back(self, step: int, epoch: int) -> tuple[list[dict[str, Any]], ...]:
        """Take later records, and lines cut short, out of the file: those taken, those kept."""
        if not self.path.exists():
            return [], []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        records = [record for line in text.splitlines() if (record := _record(line))]
        kept = [record for record in records if _is_before(record, step, epoch)]
        if (content := "".join(f"{json.dumps(record)}\n" for record in kept)) != text:
            with whole_file(self.path) as file:
                file.write_text(content, encoding="utf-8")
        return [record for record in records if not _is_before(record, step, epoch)], kept

    def _draw(self, record: Mapping[str, Any]) -> None:
        for name, value in _numbers(record):
            self.board.add_scalar(name, value, record["step"])
        # Another thread writes them, and would be killed along with the run.
        self.board.flush()

    def picture(self, path: Path, step: int) -> None:
        """Show a picture that lies at `path` under its name."""
        rgb = as_photo(path)[..., ::-1]
        self.board.add_image(path.stem, rgb, step, dataformats="HWC")

    def close(self) -> None:
        """Write out what is still in memory."""
        self.board.close()


def _leave_the_second(board: Path) -> None:
    """Wait, if the newest file of curves was begun in this very second.

    TensorBoard reads files in the order of their names, which tell the second and then the process:
    of two from one second it might take the later run's first, and purge the wrong curves.
    """
    begun = {int(file.name.split(".")[3]) for file in board.glob("events.out.tfevents.*")}
    now = time.time()
    if int(now) in begun:
        time.sleep(1 - now % 1)


def _record(line: str) -> dict[str, Any] | None:
    """What a line tells of a step; None of one that was cut short."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _is_before(record: Mapping[str, Any], step: int, epoch: int) -> bool:
    """Whether it tells of steps and epochs that are over."""
    over = "epoch_losses" not in record or record.get("epoch", epoch + 1) <= epoch
    return bool(record["step"] <= step and over)


def _numbers(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name not in ("step", "epoch"):
            found.append((prefix + name, float(value)))
    return found


def peak_memory(device: torch.device) -> float:
    """Most memory in use so far, in GiB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

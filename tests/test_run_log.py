"""The log of a run: lines that are whole, and each step told once."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

from tests.training_run import log, same_curves
from training.run_log import RunLog


def test_wherever_a_log_is_cut_its_lines_are_whole(tmp_path: Path) -> None:
    records = [{"step": step, "losses": {"mask": step / 3}} for step in (1, 2, 3)]
    for record in records:
        with (tmp_path / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
    content = (tmp_path / "log.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(ends[1], ends[2] + 1):
        out = tmp_path / str(cut)
        out.mkdir()
        (out / "log.jsonl").write_bytes(content[:cut])
        mended = RunLog(out, step=3)
        mended.write({"step": 4})
        mended.close()
        kept = records if cut >= ends[2] - 1 else records[:2]
        assert log(out) == [*kept, {"step": 4}]


def test_a_log_is_cut_back_to_the_step_it_goes_on_from(tmp_path: Path) -> None:
    first = RunLog(tmp_path, step=0)
    for step in (1, 2, 3, 4):
        first.write({"step": step, "loss": 1 / step})
    first.close()
    second = RunLog(tmp_path, step=2)
    second.write({"step": 3, "loss": 0.5})
    second.close()
    assert [(record["step"], record["loss"]) for record in log(tmp_path)] == [
        (1, 1.0), (2, 0.5), (3, 0.5),
    ]  # fmt: skip
    same_curves(tmp_path)


def test_an_epoch_that_was_told_but_not_kept_is_told_once(tmp_path: Path) -> None:
    first = RunLog(tmp_path, step=0)
    for step in (1, 2):
        first.write({"step": step, "epoch": 0, "loss": 1 / step})
    # Killed before the epoch's last state: that of before its validation is gone on from.
    first.write({"step": 2, "epoch": 1, "epoch_losses": {"mask": 0.75}, "val": {"mIoU": 0.5}})
    first.close()
    second = RunLog(tmp_path, step=2, epoch=0)
    second.write({"step": 2, "epoch": 1, "epoch_losses": {"mask": 0.75}, "val": {"mIoU": 0.51}})
    second.close()
    assert [record.get("val") for record in log(tmp_path)] == [None, None, {"mIoU": 0.51}]
    same_curves(tmp_path)


def test_curves_of_runs_within_one_second_are_those_of_the_last(tmp_path: Path) -> None:
    # Processes whose numbers, in the files' names, run against the order of writing.
    for process, (step, value) in {3000: (0, 1.0), 2000: (2, 0.5), 1000: (2, 0.25)}.items():
        with patch("os.getpid", return_value=process):
            told = RunLog(tmp_path, step=step)
        for later in (1, 2):
            told.write({"step": step + later, "loss": value / later})
        told.close()
    assert [record["loss"] for record in log(tmp_path)] == [1.0, 0.5, 0.25, 0.125]
    same_curves(tmp_path)

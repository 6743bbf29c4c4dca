"""The benchmark and the watch on memory run, and say what they measured; no time is judged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from cris_edge.engines import installed
from cris_edge.errors import EngineError
from samples import benchmark, memory
from samples.bench.contender import Contender, Model, contenders, offered
from samples.bench.process import Worker, WorkerError
from samples.bench.rounds import Entry, all_figures
from samples.bench.torch_subjects import PlainSubject
from samples.bench.worker import new_phrases
from samples.reference import PlainCRIS
from tests.scenes import small_model, small_tokenizer

SHORT = ["--rounds", "2", "--repetitions", "1", "--starts", "1", "--threads", "1"]
CALLS = {"both", "photo", "phrase", "eight"}


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Path:
    return small_bundle


def numbers(value: Any) -> Iterator[float]:
    """All numbers within a row."""
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers(part)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def test_every_row_is_there_and_a_broken_one_says_why(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    kept = tmp_path / "speed.json"
    models = ["--models", str(bundle), str(broken), "--json", str(kept)]
    assert benchmark.main([*SHORT, *models]) == 1
    found = json.loads(kept.read_text())
    assert found["machine"]["cores"] > 0
    assert "numpy" in found["machine"]["packages"]
    rows = found["contenders"]
    lines = [(name, computed) for name in installed() for computed in (None, *offered(name))]
    assert [row["label"] for row in rows] == [
        f"{name}, {engine}{f' {computed}' if computed else ''}, 1 thread"
        for name in ("small", "broken")
        for engine, computed in lines
    ]
    working, failed = rows[: len(lines)], rows[len(lines) :]
    assert [row["computed"] for row in working] == [computed or "float32" for _, computed in lines]
    for row in working:
        check_row(row)
    assert all("so this is no bundle" in row["error"] for row in failed)
    for row in found["runtime"]:
        assert {"import", "first_mask", "peak_bytes"} < set(row)
        assert all(math.isfinite(value) and value > 0 for value in numbers(row))
    check_table(capsys.readouterr().out, rows)


def check_row(row: dict[str, Any]) -> None:
    """All figures are there, finite and possible."""
    assert row["model"] == "small"
    assert set(row["calls"]) == set(row["times_faster"]) == CALLS
    assert set(row["stages"]) == {"prepare", "photo", "phrase", "pair", "back"}
    assert set(row["frames"]) == {"stream", "one_by_one"}
    assert all(math.isfinite(value) and value >= 0 for value in numbers(row))
    assert all(0 < row["calls"][name]["median"] <= row["calls"][name]["p95"] for name in CALLS)
    assert all(row[name] > 0 for name in ("load", "first", "first_eight", "bundle_bytes"))
    assert row["peak_bytes"] > 10e6


def check_table(text: str, rows: list[dict[str, Any]]) -> None:
    """Each row stands in the tables of calls and of stages, and failures with their reason."""
    lines = text.splitlines()
    for row in rows:
        of_row = [line for line in lines if line.startswith(row["label"])]
        assert len(of_row) >= 2
        assert all(("failed: " in line) == ("error" in row) for line in of_row)


class Able:
    """An engine on a CPU that has bfloat16."""

    def refuses(self, precision: str) -> str | None:
        return None


def test_bfloat16_has_a_line_where_an_engine_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(name: str) -> Able:
        if name != "openvino":
            raise EngineError("broken")
        return Able()

    monkeypatch.setattr("samples.bench.contender.open_engine", opened)
    small = Model("small", None)
    found = contenders([(small, "onnxruntime"), (small, "openvino")], [1, 2])
    assert [one.label for one in found if one.threads == 2] == [
        "small, onnxruntime, 2 threads",
        "small, openvino, 2 threads",
        "small, openvino bfloat16, 2 threads",
    ]
    assert len(found) == 6


def test_what_is_neither_bundle_nor_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([*SHORT, "--models", "cris_edge_xl"]) == 2
    assert "no model 'cris_edge_xl'; there are cris_r50" in capsys.readouterr().err


def test_a_process_that_dies_is_reported() -> None:
    worker = Worker(["-c", "import sys; sys.exit('out of luck')"], 1)
    with pytest.raises(WorkerError, match="status 1: out of luck"):
        worker.ask()
    worker.close()


def test_ratios_are_of_the_same_round() -> None:
    def entry(kind: str, times: list[float]) -> Entry:
        turns = [
            {
                "calls": {name: [time] for name in CALLS},
                "stages": {},
                "frames": {},
                "peak_bytes": 1,
                "idle_cpu_seconds": 0,
            }
            for time in times
        ]
        return Entry(Contender(kind, 1, kind), {}, turns)

    # The machine was four times slower in the second round, for both.
    fast, plain = all_figures([entry("bundle", [1, 4, 2]), entry("cris", [3, 12, 4])])
    assert fast["times_faster"]["both"] == 3
    assert plain["times_faster"]["both"] == 1


def test_new_phrases_stay_new_for_a_model_of_few_tokens() -> None:
    tokenizer = small_tokenizer()
    ids = {tokenizer.encode(text, 8).tobytes() for text in islice(new_phrases(), 300)}
    assert len(ids) == 300


def test_the_reference_computes_what_cris_computes() -> None:
    tokenizer = small_tokenizer()
    model = small_model(tokenizer)
    phrases = ["red car", "the dog on the left", "a"]
    tokens = torch.stack([torch.from_numpy(tokenizer.encode(text, 8)) for text in phrases])
    frame = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        logits = model(frame, tokens)
        plain = PlainCRIS(model)(frame.expand(3, -1, -1, -1), tokens)
    torch.testing.assert_close(plain, logits, atol=1e-4, rtol=0)
    assert logits.std() > 1e-3


def test_the_reference_goes_back_to_the_photo_as_the_runtime_does() -> None:
    subject = PlainSubject.__new__(PlainSubject)
    subject.letterbox = benchmark_letterbox()
    logits = torch.nn.functional.interpolate(torch.randn(1, 1, 13, 13), (104, 104), mode="bicubic")
    frame = torch.zeros(480, 640, 3, dtype=torch.uint8).numpy()
    restored = subject.letterbox.restore(logits[0, 0].numpy(), 480, 640) > 0.35
    assert (subject.restore(logits, frame) == restored).mean() > 0.999


def benchmark_letterbox() -> Any:
    from training.model.config import R50
    from training.predictor import letterbox_of

    return letterbox_of(R50)


def test_memory_is_watched(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--predictions", "40", "--bundle", str(bundle), "--engine", "onnxruntime"]
    assert memory.main([*wanted, "--bound", "1000"]) == 0
    text = capsys.readouterr().out
    assert text.count(" predictions ") == 20
    assert "grew by" in text
    assert memory.main([*wanted, "--bound", "-1000"]) == 1
    assert memory.main(["--bundle", "missing"]) == 2

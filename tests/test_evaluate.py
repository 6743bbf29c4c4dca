"""Evaluation end to end: a small model, made-up photos, the runtime's own masks."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cris_edge import EngineError, Segmenter
from cris_edge.tokenizer import Tokenizer
from tests.scenes import small_model, small_tokenizer, write_folder
from training import checkpoint
from training.data.samples import Sample, load_samples, load_sources
from training.errors import CheckpointError, DataError
from training.evaluate import evaluate, main, parse, parser
from training.evaluation import Evaluation, evaluate_pairs, evaluate_samples
from training.groups import group_names
from training.metrics import iou
from training.model import CRIS
from training.predictor import letterbox_of, open_segmenter, torch_segmenter
from training.selection import SceneData, open_data


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Path:
    return small_bundle


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> CRIS:
    return small_model(tokenizer)


@pytest.fixture(scope="module")
def segmenter(model: CRIS, tokenizer: Tokenizer) -> Segmenter:
    return torch_segmenter(model, tokenizer, threshold=0.5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, model: CRIS, tokenizer: Tokenizer) -> Path:
    path = tmp_path_factory.mktemp("run") / "small.safetensors"
    checkpoint.save(path, model, tokenizer, {})
    return path


@pytest.fixture(scope="module")
def samples(data: Path) -> list[Sample]:
    return load_samples(data, "val", "both")


@pytest.fixture(scope="module")
def evaluation(segmenter: Segmenter, samples: list[Sample]) -> Evaluation:
    return evaluate_samples(segmenter, samples, progress=False)


# --- torch through the runtime ---


def test_a_model_in_torch_gives_through_the_runtime_what_it_gives_by_itself(
    model: CRIS, tokenizer: Tokenizer, samples: list[Sample]
) -> None:
    segmenter, photo = torch_segmenter(model, tokenizer), samples[0].photo.read()
    phrases = ["the dog", "left car", "red"]
    letterbox = letterbox_of(model.config)
    tokens = [tokenizer.encode(phrase, model.config.word_len) for phrase in phrases]
    with torch.no_grad():
        logits = model(torch.tensor(letterbox.frame(photo)[None]), torch.tensor(np.stack(tokens)))
    for result, own in zip(segmenter.predict(photo, phrases), logits.numpy(), strict=True):
        expected = letterbox.restore(own[0], *photo.shape[:2])
        np.testing.assert_allclose(result.probability, expected, atol=1e-5)
    assert segmenter.threshold == 0.35
    assert segmenter.info.engine == "torch"


def test_weights_that_change_are_seen_and_a_model_in_training_is_refused(
    tokenizer: Tokenizer, samples: list[Sample]
) -> None:
    model, photo = small_model(tokenizer, seed=3), samples[0].photo.read()
    segmenter = torch_segmenter(model, tokenizer)
    before = segmenter.predict(photo, "dog").probability
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.mul_(3)
    assert np.abs(segmenter.predict(photo, "dog").probability - before).max() > 1e-3
    with pytest.raises(EngineError, match=r"eval\(\)"):
        torch_segmenter(model.train(), tokenizer).predict(photo, "dog")


def test_results_that_are_no_numbers_are_refused(
    tokenizer: Tokenizer, samples: list[Sample]
) -> None:
    model = small_model(tokenizer)
    with torch.no_grad():
        model.projector.kernel.bias[-1] = float("nan")
    with pytest.raises(EngineError, match="torch gave results that are no numbers for 'dog'"):
        torch_segmenter(model, tokenizer).predict(samples[0].photo.read(), "dog")


def test_a_checkpoint_opens_as_the_model_that_was_saved(
    saved: Path, model: CRIS, tokenizer: Tokenizer, samples: list[Sample]
) -> None:
    photo = samples[0].photo.read()
    opened = open_segmenter(saved).predict(photo, "left car")
    expected = torch_segmenter(model, tokenizer).predict(photo, "left car")
    np.testing.assert_allclose(opened.probability, expected.probability, atol=1e-4)


def test_what_cannot_be_opened_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="torch runs, not openvino"):
        open_segmenter(saved, engine="openvino")
    with pytest.raises(EngineError, match="a checkpoint runs in float32, not in bfloat16"):
        open_segmenter(saved, precision="bfloat16")
    with pytest.raises(CheckpointError, match="no such file"):
        open_segmenter(tmp_path / "none.safetensors")


# --- records ---


def test_records_hold_what_the_runtime_predicts(
    segmenter: Segmenter, samples: list[Sample], evaluation: Evaluation
) -> None:
    assert [record.sample for record in evaluation.records] == samples
    for record in evaluation.records[::5]:
        sample = record.sample
        result = segmenter.predict(str(sample.photo.path), sample.text)
        truth = sample.instance.mask()
        np.testing.assert_array_equal(record.mask(), result.mask)
        assert record.iou == iou(result.mask, truth)
        assert record.inter == (result.mask & truth).sum()
        assert record.union == (result.mask | truth).sum()
        assert record.score == pytest.approx(result.score)
        assert record.coverage == pytest.approx(result.mask.mean())
        assert record.truth_share == pytest.approx(truth.mean())
    assert evaluation.scores.miou == pytest.approx(np.mean([r.iou for r in evaluation.records]))


def test_the_order_of_samples_is_kept_and_changes_nothing(
    segmenter: Segmenter, samples: list[Sample], evaluation: Evaluation
) -> None:
    order = np.random.default_rng(0).permutation(len(samples))
    records = evaluate_samples(segmenter, [samples[i] for i in order], progress=False).records
    assert [r.sample for r in records] == [samples[i] for i in order]
    assert [r.iou for r in records] == [evaluation.records[i].iou for i in order]


def test_samples_can_be_predicted_by_other_phrases(
    segmenter: Segmenter, samples: list[Sample]
) -> None:
    (record,) = evaluate_pairs(segmenter, [(samples[0], "the dog")], progress=False)
    expected = segmenter.predict(samples[0].photo.read(), "the dog")
    np.testing.assert_array_equal(record.mask(), expected.mask)
    assert record.phrase == "the dog"


def test_nothing_to_evaluate_is_refused(segmenter: Segmenter) -> None:
    with pytest.raises(DataError, match="at least one sample"):
        evaluate_samples(segmenter, [], progress=False)


# --- groups ---


def test_groups_follow_the_sample(samples: list[Sample]) -> None:
    dog = next(s for s in samples if s.instance.category == "dog" and s.kind == "category")
    assert group_names(dog, 0.02) == [
        "all", "kind: category", "area < 3 %", "not a person", "no rival",
    ]  # fmt: skip
    car = next(s for s in samples if s.source == "written" and "left" in s.text)
    assert group_names(car, 0.05) == [
        "all", "area >= 3 %", "area 3 to 10 %", "not a person", "rival present",
        "says left or right",
    ]  # fmt: skip
    assert "area > 10 %" in group_names(car, 0.2)


def test_groups_of_one_property_split_the_samples(evaluation: Evaluation) -> None:
    counts = {name: scores.count for name, scores in evaluation.groups.items()}
    assert next(iter(counts)) == "all"
    total = len(evaluation.records)
    assert counts["rival present"] + counts["no rival"] == total
    assert sum(n for name, n in counts.items() if name in ("area < 3 %", "area >= 3 %")) == total
    derived = sum(record.sample.source == "derived" for record in evaluation.records)
    assert sum(n for name, n in counts.items() if name.startswith("kind: ")) == derived


# --- the whole evaluation ---


def test_sources_stand_apart_and_baselines_are_of_the_same_samples(
    segmenter: Segmenter, data: Path
) -> None:
    parts = evaluate(segmenter, open_data(data), baselines=True, progress=False)
    assert [part.source for part in parts] == ["derived", "written"]
    for part in parts:
        assert {record.sample.source for record in part.evaluation.records} == {part.source}
        assert part.baselines is not None
        for scores in part.baselines.rows().values():
            assert scores.count == len(part.evaluation.records)
        better = part.baselines.better
        assert better >= max(part.baselines.fitted.miou, part.baselines.shuffled.miou)
        assert part.ratio == pytest.approx(part.evaluation.scores.miou / better)


def test_without_a_training_split_one_baseline_less_is_told(
    segmenter: Segmenter, data: Path, tmp_path: Path
) -> None:
    alone = shutil.copytree(data, tmp_path / "alone")
    for name in ("instances_train.json", "expressions_written_train.json"):
        (alone / name).unlink()
    for part in evaluate(segmenter, open_data(alone), limit=4, baselines=True, progress=False):
        assert part.baselines is not None
        assert part.baselines.training is None
        assert part.baselines.fitted.count == 4


def test_a_limit_spreads_over_the_split(segmenter: Segmenter, data: Path) -> None:
    (derived, written) = evaluate(segmenter, open_data(data), limit=4, progress=False)
    assert len(derived.evaluation.records) == len(written.evaluation.records) == 4
    assert len({r.sample.photo.path for r in written.evaluation.records}) == 4
    assert derived.baselines is derived.ratio is None


def test_splits_of_a_data_folder_stand_apart(segmenter: Segmenter, data: Path) -> None:
    folder = open_data(data)
    parts = evaluate(segmenter, folder, ["all"], limit=3, progress=False)
    names = ["derived train", "written train", "derived val", "written val"]
    assert [part.source for part in parts] == names
    assert parts[1].selection.title.endswith("looking at the photos), split train")
    (derived, _) = evaluate(segmenter, folder, ["train", "train"], limit=3, progress=False)
    assert (derived.source, derived.selection.split) == ("derived", "train")
    # What a rule made is told by its rule, whatever the samples are called.
    assert any(name.startswith("kind: ") for name in parts[0].evaluation.groups)


def test_what_a_data_folder_has_not_is_refused(segmenter: Segmenter, data: Path) -> None:
    with pytest.raises(DataError, match="no split test; the data have train, val"):
        evaluate(segmenter, open_data(data), ["val", "test"], progress=False)
    with pytest.raises(DataError, match="only of a prepared set can the first sentence"):
        evaluate(segmenter, open_data(data), sentences="first", progress=False)
    with pytest.raises(DataError, match="--sentences is for prepared sets"):
        evaluate(segmenter, SceneData(1), sentences="all", progress=False)
    with pytest.raises(DataError, match="no prepared set"):
        open_data(data, photos=data / "photos")


def test_data_without_written_expressions_have_derived_ones(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", scenes=2)
    (folder / "expressions_written_val.json").unlink()
    assert list(load_sources(folder, "val")) == ["derived"]
    with pytest.raises(DataError, match="split should be one of"):
        load_sources(folder, "test")


# --- the command ---


def test_the_command_prints_and_writes_everything(
    saved: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--baselines",
        "--json",
        f"{tmp_path / 'r.json'}",
        "--sheet",
        f"{tmp_path / 's.png'}",
    ]
    assert main([str(saved), "--data", str(data), *options]) == 0
    printed = capsys.readouterr().out
    parts = ("Derived expressions", "Written expressions", "shuffled phrases", "whole photo")
    terms = ("mIoU", "oIoU", "Pr@90", "split val", "probability > 0.35", "at least 1.5")
    for words in (*parts, *terms):
        assert words in printed
    content = json.loads((tmp_path / "r.json").read_text())
    for source in ("derived", "written"):
        part = content["expressions"][source]
        assert part["groups"]["all"]["count"] == len(part["samples"])
        ious = [sample["iou"] for sample in part["samples"]]
        assert part["groups"]["all"]["mIoU"] == pytest.approx(np.mean(ious), abs=1e-4)
        assert (tmp_path / f"s-{source}.png").stat().st_size > 10_000
        assert part["sentences"] is None
        assert "categories" not in part
        assert "gres" not in part
        for sample in part["samples"]:
            assert sample["objects"] == 1
            assert sample["intersection"] <= sample["predicted"] <= sample["union"]
    assert {"date", "machine", "versions", "threshold", "metrics"} <= content.keys()
    assert content["splits"] == ["val"]


def test_a_threshold_can_be_chosen(
    saved: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(saved), "--data", str(data), "--limit", "2", "--threshold", "0.75"]) == 0
    assert "threshold  probability > 0.75" in capsys.readouterr().out
    for value in ("1", "-0.1"):
        with pytest.raises(SystemExit):
            main([str(saved), "--data", str(data), "--threshold", value])
        assert "expected a number from 0 to below 1" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_bundle_scores_what_its_checkpoint_scores(
    engine: str, bundle: Path, saved: Path, data: Path
) -> None:
    parts = evaluate(open_segmenter(saved), open_data(data), progress=False)
    others = evaluate(open_segmenter(bundle, engine), open_data(data), progress=False)
    for part, other in zip(parts, others, strict=True):
        for record, same in zip(part.evaluation.records, other.evaluation.records, strict=True):
            assert (record.sample.text, record.phrase) == (same.sample.text, same.phrase)
            assert np.mean(record.mask() == same.mask()) > 0.999
        assert other.evaluation.scores.miou == pytest.approx(part.evaluation.scores.miou, abs=1e-3)


def test_what_a_blind_ellipse_lacks_is_told_before_anything_is_predicted(
    saved: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    labels = broken / "instances_train.json"
    labels.write_text(labels.read_text().replace("scene_0.png", "elsewhere.png"))
    monkeypatch.setattr("training.evaluate.evaluate_pairs", None)
    assert main([str(saved), "--data", str(broken), "--baselines"]) == 2


def test_a_photo_that_cannot_be_predicted_is_named(
    segmenter: Segmenter, samples: list[Sample]
) -> None:
    one = dataclasses.replace(samples[0], text=" ")
    with pytest.raises(DataError, match=rf"^{one.photo.path.name}: the phrase ' ' is empty"):
        evaluate_samples(segmenter, [one])


def test_what_is_wrong_is_told_in_one_line(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(saved), "--data", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_the_commands_of_the_documentation_are_commands() -> None:
    page = Path(__file__).parent.parent / "docs" / "evaluation.md"
    texts = (page.read_text(encoding="utf-8"), str(parser().epilog))
    lines = [line.strip() for text in texts for line in text.splitlines()]
    found = [line for line in lines if line.startswith(("python -m training.evaluate", "torchrun"))]
    assert len(found) == 12
    for line in found:
        _, arguments = line.split("-m training.evaluate ")
        options = parse(shlex.split(arguments))
        assert options.official == (options.model.name == "best_model.pth")

"""Checkpoints come back exactly as they were kept, or are refused; nothing in them is run."""

from __future__ import annotations

import json
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cris_edge.tokenizer import Tokenizer
from tests.scenes import small_model, small_tokenizer
from training import checkpoint
from training.errors import CheckpointError
from training.model import CRIS

NOTES = {"training_data": "made-up scenes", "accuracy": '{"mIoU": 0.5}', "note": "naïve, 日本"}
EXTRA = {
    "average.n": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "half": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> CRIS:
    return small_model(tokenizer)


@pytest.fixture
def saved(tmp_path: Path, model: CRIS, tokenizer: Tokenizer) -> Path:
    path = tmp_path / "small.safetensors"
    checkpoint.save(path, model, tokenizer, NOTES, EXTRA)
    return path


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name])
        for name in ours
    )


# --- there and back ---


def test_everything_comes_back_exactly(saved: Path, model: CRIS, tokenizer: Tokenizer) -> None:
    kept = checkpoint.load(saved)
    assert kept.model.config == model.config
    assert same(kept.model.state_dict(), model.state_dict())
    assert kept.tokenizer.to_json() == tokenizer.to_json()
    assert kept.threshold == 0.35
    assert kept.metadata == NOTES | {"format": checkpoint.FORMAT}
    assert same(kept.extra, EXTRA)
    assert not kept.model.training


def test_where_its_masks_end_comes_back(
    saved: Path, tmp_path: Path, model: CRIS, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "pale.safetensors"
    checkpoint.save(path, model, tokenizer, NOTES, threshold=0.1 + 0.2)
    assert checkpoint.load(path).threshold == 0.1 + 0.2
    # One of before this was kept.
    rewrite(saved, drop="threshold")
    assert checkpoint.load(saved).threshold == 0.35


def test_the_model_that_comes_back_gives_the_same_logits(saved: Path, model: CRIS) -> None:
    frame = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    tokens = torch.tensor([[1510, 5, 300, 1511, 0, 0, 0, 0]])
    with torch.no_grad():
        assert torch.equal(checkpoint.load(saved).model(frame, tokens), model(frame, tokens))


def test_tensors_that_share_memory_or_lie_otherwise_in_it_are_kept(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = small_model(tokenizer).to(memory_format=torch.channels_last)
    whole = torch.arange(12.0).reshape(3, 4)
    extra = {"whole": whole, "again": whole, "turned": whole.T, "part": whole[:, 1]}
    path = tmp_path / "shared.safetensors"
    checkpoint.save(path, model, tokenizer, {}, extra)
    kept = checkpoint.load(path)
    assert same(kept.extra, extra)
    assert same(kept.model.state_dict(), model.state_dict())


def test_saving_leaves_the_model_as_it_is(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = small_model(tokenizer).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint.save(tmp_path / "model.safetensors", model, tokenizer, {})
    assert model.training
    assert same(model.state_dict(), before)
    assert all(parameter.requires_grad for parameter in model.neck.parameters())


def test_what_can_be_computed_is_left_out(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        names = set(file.keys())
    assert "model.neck.c5.0.weight" in names
    assert not [name for name in names if "codes" in name or "coordinates" in name]


def test_folders_are_made_and_an_older_file_is_replaced(
    tmp_path: Path, model: CRIS, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "runs" / "a" / "last.safetensors"
    for epoch in ("1", "2"):
        checkpoint.save(path, model, tokenizer, {"epoch": epoch})
    assert checkpoint.load(path).metadata["epoch"] == "2"
    assert list(path.parent.iterdir()) == [path]


def test_an_optimiser_goes_on_as_if_never_stopped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def step(model: CRIS, optimiser: torch.optim.Optimizer) -> None:
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 + index % 3)
        optimiser.step()

    def start(model: CRIS) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    model, path = small_model(tokenizer), tmp_path / "last.safetensors"
    optimiser = start(model)
    step(model, optimiser)
    checkpoint.save(path, model, tokenizer, {}, checkpoint.optimiser_tensors(optimiser))
    step(model, optimiser)

    kept = checkpoint.load(path)
    resumed = start(kept.model)
    checkpoint.restore_optimiser(resumed, kept.extra)
    step(kept.model, resumed)
    assert same(kept.model.state_dict(), model.state_dict())
    # Without its state Adam steps elsewhere, so that the equality above means something.
    forgetful = checkpoint.load(path).model
    step(forgetful, start(forgetful))
    assert not same(forgetful.state_dict(), model.state_dict())


def test_an_optimisers_state_lies_in_memory_as_its_parameters(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Fused kernels refuse anything else, on GPUs alone."""
    model, path = small_model(tokenizer).to(memory_format=torch.channels_last), tmp_path / "a.st"
    optimiser = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    checkpoint.save(path, model, tokenizer, {}, checkpoint.optimiser_tensors(optimiser))
    kept = checkpoint.load(path)
    kept.model.to(memory_format=torch.channels_last)
    resumed = torch.optim.AdamW(kept.model.parameters())
    checkpoint.restore_optimiser(resumed, kept.extra)
    for one, other in zip(model.parameters(), kept.model.parameters(), strict=True):
        before, state = optimiser.state[one], resumed.state[other]
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == other.stride()
        assert all(torch.equal(value, state[quantity]) for quantity, value in before.items())
    assert any(not parameter.is_contiguous() for parameter in kept.model.parameters())


# --- refusals ---


def no_file(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 40)


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def cut_in_the_tensors(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def longer_than_it_says(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)


def of_another_format(path: Path) -> None:
    rewrite(path, format="cris-edge-checkpoint-0")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_file, "no such file"),
        (a_folder, "no such file"),
        (nothing, "damaged"),
        (noise, "damaged"),
        (cut_in_the_header, "damaged"),
        (cut_in_the_tensors, "damaged"),
        (longer_than_it_says, "damaged"),
        (foreign, "expected the format 'cris-edge-checkpoint-1', found None"),
        (of_another_format, "found 'cris-edge-checkpoint-0'"),
    ],
)
def test_damaged_and_foreign_files_are_refused(
    spoil: Callable[[Path], None], words: str, saved: Path
) -> None:
    spoil(saved)
    with pytest.raises(CheckpointError, match=words) as caught:
        checkpoint.load(saved)
    assert str(saved) in str(caught.value)


def rewrite(
    path: Path,
    drop: str | None = None,
    tensors: dict[str, torch.Tensor | None] | None = None,
    **header: str,
) -> None:
    """Write a checkpoint again with another header or other tensors."""
    with safe_open(path, framework="pt") as file:
        kept = dict(file.metadata())
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content |= tensors or {}
    changed = {name: text for name, text in (kept | header).items() if name != drop}
    save_file({n: t for n, t in content.items() if t is not None}, path, changed)


def changed_config(path: Path, **sizes: Any) -> str:
    with safe_open(path, framework="pt") as file:
        return json.dumps(json.loads(file.metadata()["config"]) | sizes)


@pytest.mark.parametrize(
    "sizes",
    [
        {"text_width": 128},
        {"decoder_layers": 2},
        {"text_width": 100},
        {"decoder_heads": 0},
        {"input_size": "large"},
        {"neck_channels": 32},
        {"vocab_size": -1},
        {"image_encoder": "no_such_network"},
        {"colour": "blue"},
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_the_tensors_are_refused(sizes: dict[str, Any], saved: Path) -> None:
    rewrite(saved, config=changed_config(saved, **sizes))
    with pytest.raises(CheckpointError, match="the header does not fit the tensors"):
        checkpoint.load(saved)


@pytest.mark.parametrize("name", ["config", "tokenizer"])
@pytest.mark.parametrize("text", [None, "", "{", "{}", "[]", "7", '"text"'])
def test_headers_that_lack_or_garble_a_part_are_refused(
    name: str, text: str | None, saved: Path
) -> None:
    if text is None:
        rewrite(saved, drop=name)
    else:
        rewrite(saved, **{name: text})
    with pytest.raises(CheckpointError, match="the header does not fit the tensors"):
        checkpoint.load(saved)


@pytest.mark.parametrize("text", ["", "a third", "nan", "inf", "0", "1", "-0.25", "35"])
def test_a_threshold_that_is_no_probability_is_refused(text: str, saved: Path) -> None:
    rewrite(saved, threshold=text)
    with pytest.raises(CheckpointError, match="threshold: expected a probability") as error:
        checkpoint.load(saved)
    assert f"{saved}: " in str(error.value)
    assert str(error.value).endswith(f"got {text!r}")


@pytest.mark.parametrize(
    "change",
    [
        {"model.neck.c5.0.weight": None},
        {"model.stranger": torch.zeros(1)},
        {"model.neck.c5.0.weight": torch.zeros(3)},
    ],
    ids=["missing", "surplus", "misshapen"],
)
def test_tensors_that_do_not_fit_the_sizes_are_refused(
    change: dict[str, torch.Tensor | None], saved: Path
) -> None:
    rewrite(saved, tensors=change)
    with pytest.raises(CheckpointError, match="the header does not fit the tensors"):
        checkpoint.load(saved)


@pytest.mark.parametrize("address", ["hf-hub:someone/network", "local-dir:/tmp"])
def test_a_header_cannot_make_timm_fetch_anything(
    address: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("timm was asked for an address")

    monkeypatch.setattr(timm, "create_model", fetch)
    rewrite(saved, config=changed_config(saved, image_encoder=address))
    with pytest.raises(CheckpointError, match="neither clip_resnet nor a model of timm"):
        checkpoint.load(saved)


class Opens:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.marker), "w")


def test_a_pickle_is_refused_without_being_run(tmp_path: Path) -> None:
    marker = tmp_path / "was_run"
    plain, zipped = tmp_path / "plain.safetensors", tmp_path / "zipped.safetensors"
    plain.write_bytes(pickle.dumps({"format": checkpoint.FORMAT, "model": Opens(marker)}))
    torch.save(Opens(marker), zipped)
    for path in (plain, zipped):
        with pytest.raises(CheckpointError, match="damaged, or not a safetensors file"):
            checkpoint.load(path)
    assert not marker.exists()


# --- writing that fails ---


@contextmanager
def full_disk(bytes_left: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_older_file_whole(
    saved: Path, model: CRIS, tokenizer: Tokenizer
) -> None:
    before = saved.read_bytes()
    with full_disk(len(before) // 2), pytest.raises(CheckpointError, match="File too large"):
        checkpoint.save(saved, model, tokenizer, {"epoch": "2"})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_breaks_off_leaves_the_older_file_whole(
    error: BaseException,
    saved: Path,
    model: CRIS,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def half(_: object, path: str, *__: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise error

    before = saved.read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(type(error)):
        checkpoint.save(saved, model, tokenizer, {})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_cannot_be_is_an_error_of_the_system(
    tmp_path: Path, model: CRIS, tokenizer: Tokenizer
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        checkpoint.save(tmp_path / "file" / "last.safetensors", model, tokenizer, {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

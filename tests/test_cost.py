"""What models cost, by the command and worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenes import without_storage
from training.model.config import MODELS, STUDENT_M, STUDENT_S, STUDENT_XS, CRISConfig
from training.model.cost import PARTS, STAGES, main, multiply_adds, parameters, table

SHIPPED = Path(__file__).parents[1] / "training" / "checkpoints" / "cris_edge_s.safetensors"


@pytest.fixture(scope="module")
def student_table() -> str:
    return table(STUDENT_S)


def figures_of(text: str) -> tuple[dict[str, float], dict[str, float]]:
    """Millions of parameters of each part, billions of multiply-adds of each stage."""
    rows = [line.rsplit(maxsplit=1) for line in text.splitlines()[2:]]
    (split,) = (place for place, (name, _) in enumerate(rows) if name.startswith("once a"))
    held, costs = rows[:split], rows[split + 1 :]
    return {k: float(v) for k, v in held}, {k: float(v) for k, v in costs}


@pytest.mark.parametrize(
    ("config", "most_millions", "most_billions"),
    [(STUDENT_XS, 4.0, 0.6), (STUDENT_S, 10, 1.5), (STUDENT_M, 25, 4)],
    ids=lambda value: getattr(value, "name", None),
)
def test_students_keep_within_their_bounds(
    config: CRISConfig, most_millions: float, most_billions: float
) -> None:
    millions, billions = (figures["all"] for figures in figures_of(table(config)))
    assert millions < most_millions
    assert billions < most_billions
    assert millions == pytest.approx(parameters(without_storage(config.name)) / 1e6, abs=0.005)


def test_the_table_adds_up(student_table: str) -> None:
    assert student_table.splitlines()[0] == "cris_edge_s, 256 px"
    for figures, names in zip(figures_of(student_table), (PARTS, STAGES), strict=True):
        assert tuple(figures) == (*names, "all")
        total = sum(figures[name] for name in names)
        assert figures["all"] == pytest.approx(total, abs=0.03)


def test_the_command_prints_the_models_named(
    student_table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cris_edge_s"]) == 0
    assert capsys.readouterr().out == student_table + "\n"
    with pytest.raises(SystemExit) as ended:
        main(["cris_edge_xxl"])
    assert ended.value.code == 2
    assert "cris_edge_s" in capsys.readouterr().err
    assert main(["none.safetensors"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_the_command_counts_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SHIPPED)]) == 0
    shipped = capsys.readouterr().out
    assert shipped.startswith("cris_edge_s, 320 px")
    millions, billions = (figures["all"] for figures in figures_of(shipped.strip()))
    assert millions < 10
    assert billions < 2.1


@pytest.mark.parametrize(("name", "count"), [("cris_r50", 146_849_122), ("cris_r101", 161_251_682)])
def test_full_models_have_the_published_number_of_parameters(name: str, count: int) -> None:
    model = without_storage(name)
    assert parameters(model) == count
    assert sum(parameters(model.get_submodule(part)) for part in PARTS) == count


def test_multiply_adds_are_those_worked_out_by_hand() -> None:
    costs = multiply_adds(MODELS["cris_r50"])
    layer = (
        4 * 512**2 * 676  # queries, keys, values, result of the pixels among each other
        + 2 * 676**2 * 512  # their scores and sums
        + 2 * 512**2 * 676  # queries and result of the pixels' attention to words
        + 2 * 676 * 17 * 512
        + 2 * 512 * 2048 * 676  # feed-forward
    )
    projector = (
        512 * 512 * 9 * 52**2  # 3x3 at stride 8
        + 512 * 256 * 9 * 104**2  # 3x3 at stride 4
        + 256 * 9 * 104**2  # each tap of the sentence's kernel, the 1x1 folded in
        + 9 * 9 * 104**2  # the taps added up
    )
    neck = (
        1024 * 512 * 13**2  # the gated C5's share of what it is merged into with C4
        + 512 * 512 * 26**2  # that of C4 and C5 in what they are merged into with C3
        + 1024 * 512 * 9 * 13**2 + 2 * 512 * 512 * 9 * 26**2  # three 3x3
        + 2 * 512 * 512 * 26**2 + 512 * 512 * 13**2  # merged
        + (514 + 512) * 512 * 9 * 26**2  # with coordinates, and the last
    )  # fmt: skip
    assert costs["pair"] == 3 * layer + projector + neck
    assert costs["photo"] > 0.3 * sum(costs.values())
    assert sum(costs.values()) < 66e9

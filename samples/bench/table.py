"""Figures for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from samples.bench.contender import in_words as count_of
from samples.bench.machine import in_words

Row = dict[str, Any]
CALLS = {"both": "both new", "photo": "new photo", "phrase": "new phrase"}
STAGES = ("prepare", "photo", "phrase", "pair", "back")
IDLE = 1.0
"""Seconds of processor time while waiting, from which on the table warns."""


def report(found: dict[str, Any]) -> str:
    """The whole of it."""
    rows = found["contenders"]
    parts = [in_words(found["machine"]), *found["notes"], ""]
    parts += ["Milliseconds from a 640 x 480 frame in memory to its mask, median / 95th percentile"]
    parts += [table(rows, CALL_COLUMNS), ""]
    parts += ["Stages and frames in milliseconds (medians), memory and bundle in MB"]
    parts += [table(rows, STAGE_COLUMNS), ""]
    parts += ["A program that starts (medians): milliseconds, memory in MB"]
    parts += [table([_labelled(row) for row in found["runtime"]], START_COLUMNS)]
    loud = [row["label"] for row in rows if row.get("idle_cpu_seconds", 0) > IDLE]
    parts += [f"{label}: kept the processor busy while it waited" for label in loud]
    return "\n".join(parts)


def table(rows: Sequence[Row], columns: dict[str, Callable[[Row], str]]) -> str:
    """A line a row; one that failed says why instead of its figures."""
    first = max(len(_name(row)) for row in rows) if rows else 0
    cells = [
        [column(row) for column in columns.values()] for row in rows if row.get("error") is None
    ]
    widths = [
        max([len(name), *(len(line[place]) for line in cells)]) + 2
        for place, name in enumerate(columns)
    ]
    lines = [" " * first + _line(list(columns), widths)]
    working = iter(cells)
    for row in rows:
        failed = row.get("error")
        rest = _line(next(working), widths) if failed is None else f"  failed: {failed}"
        lines.append(f"{_name(row):<{first}}{rest}")
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _name(row: Row) -> str:
    note = row.get("note")
    return f"{row['label']} ({note})" if note else str(row["label"])


def _labelled(row: Row) -> Row:
    return row | {"label": f"{row['model']}, {row['engine']}, {count_of(row['threads'])}"}


def _ms(value: float | None) -> str:
    """Three digits that mean something."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _mb(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.1f}"


def _spread(name: str) -> Callable[[Row], str]:
    return lambda row: f"{_ms(row['calls'][name]['median'])} / {_ms(row['calls'][name]['p95'])}"


def _times(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row['times_faster'][name]:.2f}" if row["times_faster"] else "-"


def _field(name: str) -> Callable[[Row], str]:
    return lambda row: _ms(row[name])


def _within(group: str, name: str) -> Callable[[Row], str]:
    return lambda row: _ms(row[group].get(name))


CALL_COLUMNS: dict[str, Callable[[Row], str]] = {
    "weights": lambda row: str(row["precision"]),
    "load": _field("load"),
    "first": _field("first"),
    "first eight": _field("first_eight"),
    **{title: _spread(name) for name, title in CALLS.items()},
    "eight phrases": _spread("eight"),
    "a phrase": _field("a_phrase_of_eight"),
    "times faster": _times("both"),
    "of eight": _times("eight"),
}
STAGE_COLUMNS: dict[str, Callable[[Row], str]] = {
    **{name: _within("stages", name) for name in STAGES},
    "a frame in a stream": _within("frames", "stream"),
    "one by one": _within("frames", "one_by_one"),
    "peak memory": lambda row: _mb(row["peak_bytes"]),
    "bundle": lambda row: _mb(row["bundle_bytes"]),
}
START_COLUMNS: dict[str, Callable[[Row], str]] = {
    "import": _field("import"),
    "start to first mask": _field("first_mask"),
    "peak memory": lambda row: _mb(row["peak_bytes"]),
}

"""Files that are written whole or not at all, by any name and for whom the user wants."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cris_edge.files import whole_file, write_image


@pytest.fixture
def private() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_the_users_umask_is_kept(tmp_path: Path, private: None) -> None:
    write_image(tmp_path / "mine.png", np.zeros((8, 8, 3), np.uint8))
    assert stat.S_IMODE((tmp_path / "mine.png").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "写" * 83 + ".png"])
def test_any_name_that_the_disk_takes_will_do(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_fails_leaves_the_older_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("older")
    with pytest.raises(ZeroDivisionError), whole_file(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [
        (path.name, "older")
    ]

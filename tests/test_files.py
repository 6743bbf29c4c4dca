"""Files that are written whole or not at all, by any name and for whom the user wants."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cris_edge.errors import InputError
from cris_edge.files import check_file_name, whole_file, write_image


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


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    link = tmp_path / "results.json"
    link.symlink_to("kept/results.json")
    for text in ("first", "second"):
        with whole_file(link) as temporary:
            temporary.write_text(text)
        assert link.is_symlink()
        assert (tmp_path / "kept" / "results.json").read_text() == text
    assert len(list(tmp_path.rglob("*"))) == 3


def test_pipes_and_devices_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        before = path.stat().st_mode
        with pytest.raises(InputError, match="this is a device or a pipe"):
            check_file_name(path)
        with pytest.raises(InputError, match="this is a device or a pipe"), whole_file(path):
            pytest.fail("nothing is begun")
        assert path.stat().st_mode == before


def test_places_that_cannot_be_written_to_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="notes is a file, not a folder"):
        check_file_name(tmp_path / "notes" / "deep" / "results.json")
    closed = Path("/proc/1")  # also to root
    if closed.is_dir():
        with pytest.raises(InputError, match="nothing may be written in /proc/1;"):
            check_file_name(closed / "results.json")

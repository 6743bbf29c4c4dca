"""Plans on disk: what is read back, what is refused and built anew, and who builds."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cris_edge.engines.tensorrt_cache import MAGIC, Entry, PlanCache, default_folder

ENTRY = Entry("photo", {"tensorrt": "tensorrt 10.3.0", "gpu": "Orin", "phrases": [1, 1, 8]})
PLAN = bytes(range(256)) * 40
posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "cache" / "tensorrt")


@pytest.fixture
def path(cache: PlanCache) -> Path:
    cache.write(ENTRY, PLAN)
    return cache.path(ENTRY)


def never() -> bytes:
    raise AssertionError("built although it was there")


def test_what_was_built_is_read_again(cache: PlanCache) -> None:
    assert cache.read(ENTRY) is None
    assert cache.obtain(ENTRY, lambda: PLAN) == (PLAN, True)
    assert cache.obtain(ENTRY, never) == (PLAN, False)
    assert PlanCache(cache.folder).obtain(ENTRY, never) == (PLAN, False)


def test_a_file_says_what_it_is(path: Path) -> None:
    magic, header, plan = path.read_bytes().split(b"\n", 2)
    assert magic + b"\n" == MAGIC
    assert json.loads(header)["key"] == ENTRY.fields
    assert plan == PLAN


@pytest.mark.parametrize(
    "change", [{"tensorrt": "tensorrt 10.4.0"}, {"gpu": "Thor"}, {"phrases": [1, 1, 4]}, {"new": 1}]
)
def test_everything_in_the_key_tells_entries_apart(
    cache: PlanCache, path: Path, change: dict
) -> None:
    other = replace(ENTRY, fields={**ENTRY.fields, **change})
    assert other.file != ENTRY.file
    assert cache.obtain(other, lambda: b"other").content == b"other"
    assert cache.obtain(ENTRY, never).content == PLAN


def test_a_name_cannot_lead_out_of_the_folder() -> None:
    assert "/" not in Entry("../../etc/x", {}).file


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda old: b"", "none of CRIS Edge's plans"),
    "another format": (lambda old: b"PK" + old, "none of CRIS Edge's plans"),
    "cut short": (lambda old: old[:-1], "has 10239 bytes, expected 10240"),
    "longer": (lambda old: old + b"x", "has 10241 bytes, expected 10240"),
    "one bit": (lambda old: old[:-1] + bytes([old[-1] ^ 1]), "SHA-256"),
    "header": (lambda old: old.replace(b'"key"', b'"kez"'), "header is damaged"),
    "no JSON": (lambda old: MAGIC + b"\xff{" + old, "header is damaged"),
    "a list": (lambda old: MAGIC + b"[]\n" + PLAN, "header is damaged"),
    "stale": (lambda old: old.replace(b"10.3.0", b"10.2.0"), "built for something else: tensorrt"),
    "no key": (lambda old: MAGIC + b'{"key":1,"bytes":0,"sha256":""}\n', "something else: 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_or_stale_is_built_anew_with_a_note(
    cache: PlanCache, path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, note = DAMAGES[damage]
    path.write_bytes(change(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert cache.obtain(ENTRY, lambda: b"new") == (b"new", True)
    assert note in caplog.text
    assert str(path) in caplog.text
    assert cache.obtain(ENTRY, never).content == b"new"


@posix
def test_links_and_pipes_are_no_entries(
    cache: PlanCache, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = path.rename(path.with_name("elsewhere"))
    before = kept.read_bytes()
    path.symlink_to(kept)
    assert cache.read(ENTRY) is None
    assert cache.obtain(ENTRY, lambda: b"new").content == b"new"
    assert (cache.obtain(ENTRY, never).content, kept.read_bytes()) == (b"new", before)
    path.unlink()
    os.mkfifo(path)
    assert cache.read(ENTRY) is None
    assert "is no file" in caplog.text
    assert cache.obtain(ENTRY, lambda: b"new").content == b"new"
    assert cache.obtain(ENTRY, never).content == b"new"


def test_a_folder_in_its_place_is_told_and_left(
    cache: PlanCache, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.unlink()
    path.mkdir()
    assert cache.obtain(ENTRY, lambda: b"new").content == b"new"
    assert "cannot be kept, and will be built again" in caplog.text
    assert path.is_dir()


@posix
def test_an_entry_that_others_may_write_is_refused(
    cache: PlanCache, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.chmod(0o666)
    assert cache.read(ENTRY) is None
    assert "others may write to it" in caplog.text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root alone may chown")
def test_what_belongs_to_another_user_is_refused(
    cache: PlanCache, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.chown(path, 12345, 12345)
    assert cache.obtain(ENTRY, lambda: b"new") == (b"new", True)
    assert "belongs to another user, 12345" in caplog.text
    assert path.stat().st_uid == os.geteuid()
    os.chown(cache.folder, 12345, 12345)
    caplog.clear()
    other = Entry("other", {})
    assert cache.obtain(other, lambda: b"new") == (b"new", True)
    assert "give it back with chown" in caplog.text
    assert not cache.path(other).exists()


@posix
def test_the_folder_is_the_users_alone(cache: PlanCache, path: Path) -> None:
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    cache.folder.chmod(0o777)
    cache.write(ENTRY, PLAN)
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_where_nothing_can_be_kept_it_still_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = PlanCache(tmp_path / "file" / "tensorrt")
    assert cache.obtain(ENTRY, lambda: PLAN) == (PLAN, True)
    assert "cannot be kept" in caplog.text


def test_a_build_that_fails_leaves_nothing(cache: PlanCache) -> None:
    with pytest.raises(ZeroDivisionError):
        cache.obtain(ENTRY, lambda: bytes(1 // 0))
    assert not cache.path(ENTRY).exists()
    assert cache.obtain(ENTRY, lambda: PLAN).built


def test_content_of_no_use_is_replaced(cache: PlanCache, path: Path) -> None:
    assert cache.obtain(ENTRY, lambda: b"new", refused=PLAN) == (b"new", True)
    # Another process, which was refused the old content too, finds the new.
    assert cache.obtain(ENTRY, never, refused=PLAN) == (b"new", False)


def test_what_a_killed_process_left_is_cleared(cache: PlanCache, path: Path) -> None:
    left, others = (path.with_name(f".{path.name}.{end}") for end in ("abc", "def"))
    for half in (left, others):
        half.write_bytes(b"half")
    os.utime(left, (0, 0))
    cache.write(ENTRY, PLAN)
    assert not left.exists()
    # Another process may be writing it.
    assert others.exists()


def test_threads_build_once(cache: PlanCache) -> None:
    built = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        cache.obtain(ENTRY, lambda: built.append(1) or PLAN)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


PROCESS = """
import sys, time
from pathlib import Path
from cris_edge.engines.tensorrt_cache import Entry, PlanCache

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])

def build():
    with open(folder / "builds", "a") as file:
        file.write("built\\n")
    print("building", flush=True)
    time.sleep(seconds)
    return b"plan"

cache = PlanCache(folder / "tensorrt", lambda line: print("waits", flush=True))
print(cache.obtain(Entry("photo", {"gpu": "Orin"}), build).built, flush=True)
"""


def start(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_builds_and_one_waits(tmp_path: Path) -> None:
    first = start(tmp_path, 2)
    assert first.stdout is not None
    assert first.stdout.readline() == "building\n"
    second = start(tmp_path, 0)
    assert second.communicate(timeout=60)[0] == "waits\nFalse\n"
    assert first.communicate(timeout=60)[0] == "True\n"
    assert (tmp_path / "builds").read_text() == "built\n"


@posix
def test_a_process_that_dies_lets_others_build(tmp_path: Path) -> None:
    first = start(tmp_path, 600)
    assert first.stdout is not None
    assert first.stdout.readline() == "building\n"
    second = start(tmp_path, 0)
    assert second.stdout is not None
    assert second.stdout.readline() == "waits\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    assert second.communicate(timeout=60)[0] == "building\nTrue\n"


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CRIS_EDGE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert default_folder() == Path.home() / ".cache" / "cris-edge" / "tensorrt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "cris-edge" / "tensorrt"
    monkeypatch.setenv("CRIS_EDGE_CACHE", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own" / "tensorrt"

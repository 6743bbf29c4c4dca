"""The sample for videos: each frame comes out with its own masks."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_edge import Segmenter, draw

ROOT = Path(__file__).parent.parent
PHRASE = "the boy on the right"
COUNT = 5


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """A photo that moves, so that no two frames have the same mask."""
    photo = cv2.imread(str(ROOT / "samples/photos/000000360452.jpg"))[:320, :480]
    return [np.ascontiguousarray(np.roll(photo, 40 * place, axis=1)) for place in range(COUNT)]


@pytest.fixture(scope="module")
def video(frames: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "in.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (480, 320))
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "samples/video.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def read(path: Path) -> list[np.ndarray]:
    capture, found = cv2.VideoCapture(str(path)), []
    while (frame := capture.read()[1]) is not None:
        found.append(np.asarray(frame))
    return found


def test_each_frame_has_its_own_mask(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    done = run(video, PHRASE, "-o", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{out}: {COUNT} frames, " in done.stdout
    segmenter = Segmenter()
    wanted = [draw(frame, [segmenter.predict(frame, PHRASE)]) for frame in read(video)]
    found = read(out)
    assert len(found) == COUNT
    for place, frame in enumerate(found):
        apart = [float(np.abs(frame.astype(float) - other).mean()) for other in wanted]
        assert int(np.argmin(apart)) == place
        # As near as the video's compression leaves it.
        assert apart[place] < 8


@pytest.mark.parametrize(
    ("source", "phrase", "output", "message"),
    [
        ("none.mp4", PHRASE, "out.mp4", "none.mp4: no video that OpenCV can open"),
        (None, " ", "out.mp4", "the phrase ' ' is empty"),
        (None, PHRASE, "out.toaster", "cannot write a video there"),
        (None, PHRASE, "none/out.mp4", "out.mp4: there is no folder"),
        (None, PHRASE, "/", "/: expected a file to write, this is a folder"),
    ],
)
def test_what_cannot_be_used_is_named(
    video: Path, tmp_path: Path, source: str | None, phrase: str, output: str, message: str
) -> None:
    older = tmp_path / "out.mp4"
    older.write_bytes(b"an older video")
    done = run(source or video, phrase, "-o", tmp_path / output)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert [(path, path.read_bytes()) for path in tmp_path.iterdir()] == [
        (older, b"an older video")
    ]


def test_a_video_that_a_full_disk_cuts_short_leaves_the_older_one(
    video: Path, tmp_path: Path
) -> None:
    older = tmp_path / "out.mp4"
    older.write_bytes(b"an older video")

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    command = [sys.executable, str(ROOT / "samples/video.py"), str(video), PHRASE, "-o", str(older)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, preexec_fn=small
    )
    assert done.returncode == 2
    assert "frames could be written; is the disk full?" in done.stderr.splitlines()[-1]
    assert [(path, path.read_bytes()) for path in tmp_path.iterdir()] == [
        (older, b"an older video")
    ]


def test_a_video_is_not_written_over_itself(video: Path, tmp_path: Path) -> None:
    before = video.read_bytes()
    (tmp_path / "link.mp4").symlink_to(video)
    done = run(video, PHRASE, "-o", tmp_path / "link.mp4")
    assert done.returncode == 2
    assert "link.mp4: is the video that is read; choose another" in done.stderr
    assert video.read_bytes() == before

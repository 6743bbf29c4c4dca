"""A video or a camera in, a video with the masks drawn in out.

Run: python samples/video.py VIDEO "the man in red" [MORE PHRASES ...] -o masks.mp4
     python samples/video.py 0 "the man in red" -o masks.mp4      camera 0, until Ctrl-C
"""

import argparse
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from cris_edge import CrisEdgeError, InputError, Segmenter, draw
from cris_edge.files import check_file_name

USUAL = 30.0
"""Frames a second of a camera that does not say."""


def read(capture: cv2.VideoCapture, kept: deque[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames, each of which is kept for its result: they are read ahead of it."""
    while (frame := capture.read()[1]) is not None:
        kept.append(frame)
        yield frame


def run(source: str, phrases: list[str], output: str) -> int:
    """Write the video, whole or not at all; the number of its frames.

    Raises:
        CrisEdgeError: there is no such video or camera, or no such phrase, or nowhere to write.
    """
    place = Path(output)
    if place.exists() and Path(source).exists() and place.samefile(source):
        raise InputError(f"{output}: is the video that is read; choose another --output")
    if not place.parent.is_dir():
        raise InputError(f"{output}: there is no folder {place.parent}")
    check_file_name(place)
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if not capture.isOpened():
        raise InputError(f"{source}: no video that OpenCV can open, and no camera")
    size = [
        int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
    ]
    rate = capture.get(cv2.CAP_PROP_FPS) or USUAL
    kept: deque[np.ndarray] = deque()
    found = Segmenter().stream(read(capture, kept), phrases)
    # What was at the place stays there until the new video is done.
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".video.") as folder:
        unfinished = Path(folder, place.name)
        writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        if not writer.isOpened():
            raise InputError(f"{output}: OpenCV cannot write a video there; use a name with .mp4")
        done = 0
        try:
            for results in found:
                writer.write(draw(kept.popleft(), results))
                done += 1
        except KeyboardInterrupt:
            pass  # how a camera's video ends
        finally:
            # First the stream, whose thread may be reading.
            found.close()
            writer.release()
            capture.release()
        check_written(unfinished, done)
        unfinished.replace(place)
    return done


def check_written(video: Path, frames: int) -> None:
    """Refuse a video that is not whole: OpenCV says nothing of a full disk.

    Raises:
        InputError: there is no frame in it, or not as many as were written.
    """
    if not frames:
        raise InputError("no frame came, so there is no video")
    written = round(cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FRAME_COUNT))
    # Formats that do not count their frames tell by their length.
    if abs(written - frames) > 1:
        raise InputError(f"{written} of {frames} frames could be written; is the disk full?")


def main() -> int:
    """Run the command; 2, with one line, where something is refused."""
    summary, _, examples = str(__doc__).partition("\n\n")
    arguments = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("source", help="a video file, or the number of a camera")
    arguments.add_argument("phrases", nargs="+", metavar="phrase", help='such as "the man in red"')
    arguments.add_argument("-o", "--output", default="masks.mp4", help="default: %(default)s")
    options = arguments.parse_args()
    begun = time.perf_counter()
    try:
        done = run(options.source, options.phrases, options.output)
    except (CrisEdgeError, OSError) as error:
        print(f"samples/video.py: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {done} frames, {done / (time.perf_counter() - begun):.1f} a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())

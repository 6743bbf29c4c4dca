"""The process of one contender: `python -m samples.bench.worker`, JSON lines in and out.

The first line is the contender; the answer tells how long it took to load, and what it is. Every
further line asks for some repetitions of everything. What fails is answered with its reason.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import cv2
import numpy as np

from cris_edge.photo import Photo
from samples.bench.contender import Contender
from samples.bench.process import peak_memory
from samples.bench.subjects import Subject, milliseconds, open_subject

HEIGHT, WIDTH = 480, 640
STREAMED = 8
"""Frames of a stream: enough for its start to weigh little."""
PHRASES = 8
SAME = "the man in the red shirt"


def new_phrases() -> Iterator[str]:
    """Phrases that no cache knows any more when they come again."""
    for number in itertools.cycle(range(1000)):
        # The number comes early, so that a model of few tokens still tells them apart.
        yield f"player {number} in the red shirt"


def new_frames() -> Iterator[Photo]:
    """Frames of noise that is smooth enough to look like a photo to a resize."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (8, HEIGHT // 16, WIDTH // 16, 3), np.uint8)
    frames = [np.asarray(cv2.resize(one, (WIDTH, HEIGHT)), np.uint8) for one in coarse]
    return itertools.cycle(frames)


class Bench:
    """One loaded model, measured turn by turn."""

    def __init__(self, subject: Subject):
        self.subject, self.frames, self.phrases = subject, new_frames(), new_phrases()

    def first(self) -> float:
        """Milliseconds of the very first mask."""
        return self._predict([SAME])

    def eight(self) -> float:
        """Milliseconds of a new photo with eight new phrases."""
        return self._predict([next(self.phrases) for _ in range(PHRASES)])

    def turn(self, repetitions: int) -> dict[str, Any]:
        """Measure everything a few times; all in milliseconds.

        The first call after a pause finds caches cold and threads asleep, and is not counted.
        """
        found: dict[str, list[float]] = {"both": [], "photo": [], "phrase": []}
        stages: dict[str, list[float]] = {}
        self.first()
        kept = self.subject.keep(next(self.frames))
        for _ in range(repetitions):
            found["both"].append(self._predict([next(self.phrases)]))
            found["photo"].append(self._predict([SAME]))
            found["phrase"].append(self._ask(kept, next(self.phrases)))
            for name, value in self.subject.stages(next(self.frames), next(self.phrases)).items():
                if value is not None:
                    stages.setdefault(name, []).append(value)
        found["eight"] = [self.eight()]
        return {"calls": found, "stages": stages, "frames": self._frames()}

    def _predict(self, phrases: list[str]) -> float:
        frame = next(self.frames)
        return milliseconds(lambda: self.subject.predict(frame, phrases))

    def _ask(self, kept: object, phrase: str) -> float:
        return milliseconds(lambda: self.subject.ask(kept, phrase))

    def _frames(self) -> dict[str, float]:
        """Milliseconds a frame, in a stream and one by one."""
        frames = list(itertools.islice(self.frames, STREAMED))
        if self.subject.stream([], SAME) is None:
            return {}
        stream = milliseconds(lambda: self.subject.stream(frames, SAME))
        calls = milliseconds(lambda: [self.subject.predict(frame, [SAME]) for frame in frames])
        return {"stream": stream / STREAMED, "one_by_one": calls / STREAMED}


def serve(orders: TextIO, answers: TextIO) -> None:
    """Load, then measure as often as asked, until there are no more orders."""
    contender = Contender(**json.loads(orders.readline()))
    cv2.setNumThreads(contender.threads)
    opened: list[Subject] = []
    load = milliseconds(lambda: opened.append(open_subject(contender)))
    bench = Bench(opened[0])
    first = bench.first()
    _tell(
        answers, {"load": load, "first": first, "first_eight": bench.eight()} | opened[0].describe()
    )
    rested = time.process_time()
    for order in orders:
        idle = time.process_time() - rested
        turn = bench.turn(json.loads(order)["repetitions"])
        # Threads that spin while they wait would disturb the others: the table says so.
        _tell(answers, turn | {"idle_cpu_seconds": idle, "peak_bytes": peak_memory()})
        rested = time.process_time()


def _tell(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def main() -> int:
    """Serve; a failure is an answer too."""
    # What libraries print goes to stderr, so that it cannot mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        serve(sys.stdin, answers)
    except Exception as error:  # engines raise what they like
        lines = str(error).splitlines() or [""]
        _tell(answers, {"error": f"{type(error).__name__}: {lines[0]}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

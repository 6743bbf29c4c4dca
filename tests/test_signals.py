"""Signals that Python handles reach programs that have opened and dropped models."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_segmenter import ENGINES

OPEN_AND_DROP = """
import gc, os, signal, sys
from concurrent.futures import ThreadPoolExecutor
from cris_edge import Segmenter

def opened():
    return Segmenter(sys.argv[1], engine=sys.argv[2], threads=1)

seen = []
signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
models = [opened(), opened()]
{drop}
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
print(len(seen))
"""
DROPS = {
    "the first one first": "models.pop(0); models.pop(0)",
    "the last one first": "models.pop(); models.pop()",
    "in another thread": "with ThreadPoolExecutor(1) as thread: thread.submit(models.clear)",
}


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal there")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("drop", DROPS)
def test_a_program_lives_through_signals(engine: str, drop: str, small_bundle: Path) -> None:
    # A device of OpenVINO's, dropped, took with it the stack on which Python handles signals.
    code = OPEN_AND_DROP.format(drop=DROPS[drop])
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, str(small_bundle), engine],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr

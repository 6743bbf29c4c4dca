"""A fresh interpreter that is asked in JSON lines, and the memory of one."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 900
"""Seconds after which a process that does not answer is given up."""


class WorkerError(Exception):
    """A process failed; the message is one line."""


def peak_memory() -> int:
    """Bytes that this process has held at most (resident set size)."""
    status = Path("/proc/self/status")
    if status.is_file():
        # `ru_maxrss` starts from what the parent held, which says nothing of this process.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Worker:
    """A Python process of its own with numbers of threads set for all its libraries."""

    def __init__(self, arguments: list[str], threads: int):
        pools = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        # `-m samples…` is found from whatever folder the benchmark is started in.
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | pools | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._errors = tempfile.TemporaryFile(  # noqa: SIM115 - `close` does
            "w+", encoding="utf-8", errors="replace"
        )
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=environment,
        )

    def ask(self, order: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a line, or nothing, and wait for the answer.

        Raises:
            WorkerError: the answer is an error, or the process ended or did not answer in time.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(PATIENCE, process.kill)
        watch.daemon = True
        watch.start()
        try:
            if order is not None:
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # it has ended, and its pipe with it
            line = ""
        finally:
            watch.cancel()
        if not line:
            raise WorkerError(self._why())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _why(self) -> str:
        """How a process ended that said nothing."""
        self._process.kill()
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        return f"the process ended with status {status}: {said[-1] if said else 'without a word'}"

    def close(self) -> None:
        """End the process."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        # A process that has ended leaves unread what it was sent last.
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._errors.close()

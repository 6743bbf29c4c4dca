"""Engines by name, imported when they are asked for and not before."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cris_edge.bundle import Bundle
from cris_edge.engines.base import OFFERED, Engine
from cris_edge.errors import EngineError

logger = logging.getLogger(__name__)

# ONNX Runtime 1.29 and later report sessions to Microsoft, and keep an identifier in the user's
# cache, unless they are told not to before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# OpenVINO reports its import to Google, and leaves an identifier in the user's home, by a package
# that it does without where it is not found.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# Best first: what `auto` tries.
ENGINES = {"tensorrt": "TensorRt", "openvino": "OpenVino", "onnxruntime": "OnnxRuntime"}
CHOICES = ("auto", *ENGINES)
"""What `choose_engine` takes, as command lines offer it."""


def installed() -> list[str]:
    """Names of the engines that are installed, best first; none is imported."""
    found = {name: importlib.util.find_spec(name) for name in ENGINES}
    # A mere folder of that name, such as one of bundles, has no origin.
    return [name for name, spec in found.items() if spec is not None and spec.origin is not None]


def answers(name: str) -> bool:
    """Whether what an installed engine computes on is there: of TensorRT, a driver and a GPU."""
    if name != "tensorrt":
        return True
    try:
        found: bool = importlib.import_module("cris_edge.engines.cuda").answers()
    except ImportError as error:
        logger.warning("tensorrt is passed over, for it needs cuda-python: %s", error)
        return False
    return found


def open_engine(name: str) -> Engine:
    """Import an engine and make ready what it computes on.

    Raises:
        EngineError: no such engine, it is not installed or broken, or what it computes on is
            missing; says what to do.
    """
    with _told_of(name):
        return _kind(name)()


def unfit(name: str, bundle: Bundle) -> str | None:
    """Why an engine, of whatever version and state, cannot run a bundle; None where it can.

    Raises:
        EngineError: no such engine, or it is not installed or broken.
    """
    with _told_of(name):
        return _kind(name).unfit(bundle)


def _kind(name: str) -> type[Engine]:
    kind: type[Engine] = getattr(
        importlib.import_module(f"cris_edge.engines.{name}"), ENGINES[name]
    )
    return kind


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    """Say in our own words that an engine is none or cannot be imported."""
    if name not in ENGINES:
        raise EngineError(f"no engine {name!r}; there are {', '.join(ENGINES)}, and 'auto'")
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # a broken engine raises what its libraries raise
        raise EngineError(
            f"the engine {name!r} is not installed or cannot be imported ({error}); "
            f"run: pip install 'cris-edge[{name}]'"
        ) from error


def choose_engine(name: str, bundle: Bundle, precision: str | None = None) -> Engine:
    """The engine of that name; for `auto` the best that is installed and runs the bundle.

    Args:
        name: of an engine, or `auto`.
        bundle: what it shall run.
        precision: one of `OFFERED` that it shall compute in; None: the bundle's own.

    Raises:
        EngineError: it is missing, or cannot run this bundle or compute in that precision. Nothing
            else is taken instead.
    """
    if precision is not None and precision not in OFFERED:
        raise EngineError(
            f"no precision {precision!r} to compute in; there is {', '.join(OFFERED)}, "
            "or leave precision out for the bundle's own"
        )
    if name != "auto":
        engine = open_engine(name)
        if reason := engine.unfit(bundle):
            raise EngineError(reason)
        if precision is not None and (reason := engine.refuses(precision)):
            raise EngineError(f"{reason}; leave precision out")
        return engine
    reasons: list[str] = []
    others: list[str] = []
    for candidate in filter(answers, installed()):
        # Before it is opened: what cannot run the bundle need not be of a version that could.
        if reason := unfit(candidate, bundle):
            others.append(reason)
            continue
        engine = open_engine(candidate)
        if precision is None or not (reason := engine.refuses(precision)):
            return engine
        reasons.append(reason)
    if reasons:
        raise EngineError(f"no installed engine can: {'; '.join(reasons)}; leave precision out")
    raise EngineError(
        f"no installed engine runs the bundle {bundle.name}"
        + "".join(f"; {reason}" for reason in others)
        + "; run: pip install 'cris-edge[onnxruntime]' or 'cris-edge[openvino]'"
    )

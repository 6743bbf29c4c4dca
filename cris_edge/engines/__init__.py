"""Engines by name, imported when they are asked for and not before."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from pathlib import PurePath

from cris_edge.bundle import Bundle
from cris_edge.engines.base import Engine
from cris_edge.errors import EngineError

logger = logging.getLogger(__name__)

# Best first: what `auto` tries.
ENGINES = {"tensorrt": "TensorRt", "openvino": "OpenVino", "onnxruntime": "OnnxRuntime"}


def installed() -> list[str]:
    """Names of the engines that are installed, best first; none is imported."""
    return [name for name in ENGINES if importlib.util.find_spec(name) is not None]


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
    """Import an engine.

    Raises:
        EngineError: no such engine, it is not installed or broken, or what it computes on is
            missing; says what to do.
    """
    if name not in ENGINES:
        raise EngineError(f"no engine {name!r}; there are {', '.join(ENGINES)}, and 'auto'")
    try:
        module = importlib.import_module(f"cris_edge.engines.{name}")
        engine: Engine = getattr(module, ENGINES[name])()
    except EngineError:
        raise
    except Exception as error:  # a broken engine raises what its libraries raise
        raise EngineError(
            f"the engine {name!r} is not installed or cannot be imported ({error}); "
            f"run: pip install 'cris-edge[{name}]'"
        ) from error
    return engine


def choose_engine(name: str, bundle: Bundle) -> Engine:
    """The engine of that name; for `auto` the best that is installed and runs the bundle.

    Raises:
        EngineError: it is missing, or cannot run this bundle. Nothing else is taken instead.
    """
    kinds = {PurePath(graph.file).suffix for graph in bundle.graphs.values()}
    if name != "auto":
        engine = open_engine(name)
        if not kinds <= set(engine.suffixes):
            raise EngineError(
                f"{name} reads {', '.join(engine.suffixes)} files; "
                f"the bundle {bundle.name} has {', '.join(sorted(kinds))}"
            )
        return engine
    for candidate in filter(answers, installed()):
        engine = open_engine(candidate)
        if kinds <= set(engine.suffixes):
            return engine
    raise EngineError(
        f"no installed engine runs the bundle {bundle.name} ({', '.join(sorted(kinds))} files); "
        "run: pip install 'cris-edge[onnxruntime]' or 'cris-edge[openvino]'"
    )

"""What every engine offers: a dictionary of tensors in, a dictionary of owned tensors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cris_edge.bundle import FOR_TENSORRT, Bundle, GraphSpec, TensorSpec
from cris_edge.errors import EngineError

OFFERED = ("bfloat16",)
"""Precisions that an engine may be asked to compute in, instead of the bundle's own."""

Value = Any
"""A tensor where the engine keeps it, for which a numpy array does too where it goes in."""


class Graph(Protocol):
    """One loaded graph. May be called from several threads at once."""

    def __call__(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Run the graph; what comes back is the caller's own, and goes into other graphs."""

    def fetch(self, value: Value) -> NDArray[np.generic]:
        """A result as an array."""


class Engine(Protocol):
    """Something that runs graphs."""

    name: str
    version: str

    @classmethod
    def unfit(cls, bundle: Bundle) -> str | None:
        """Why none of its kind can run a bundle's graphs; None where it can."""

    def refuses(self, precision: str) -> str | None:
        """Why it cannot compute in one of `OFFERED` on this machine; None where it can."""

    def load(
        self, path: Path, spec: GraphSpec, threads: int | None, precision: str | None = None
    ) -> Graph:
        """Load a graph.

        Args:
            path: the graph's main file.
            spec: what goes in and out; a graph that differs is refused.
            threads: for one run of the graph; None lets the engine choose.
            precision: to compute in, one that `refuses` has nothing against; None: the bundle's.

        Raises:
            EngineError: the engine cannot load it, or it is not as specified.
        """


def unfit_for_cpus(engine: str, suffixes: Sequence[str], bundle: Bundle) -> str | None:
    """Why an engine for CPUs, which reads files of these suffixes, cannot run a bundle's graphs."""
    if not bundle.suffixes <= set(suffixes):
        return (
            f"{engine} reads {', '.join(suffixes)} files; "
            f"the bundle {bundle.name} has {', '.join(sorted(bundle.suffixes))}"
        )
    if bundle.precision == "int8" and bundle.target == FOR_TENSORRT:
        return (
            f"{engine} would round other things than TensorRT, for which the INT8 bundle "
            f"{bundle.name} was made, and give other masks; for CPUs run: "
            "python -m quantize.calibrate --target openvino, or --target onnx"
        )
    return None


def check_tensors(
    engine: str, path: Path, spec: GraphSpec, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> None:
    """Refuse a graph whose inputs and outputs have other names, types or shapes than specified.

    Raises:
        EngineError: with both lists.
    """
    for side, had, wanted in (("inputs", inputs, spec.inputs), ("outputs", outputs, spec.outputs)):
        if sorted(had, key=lambda t: t.name) != sorted(wanted, key=lambda t: t.name):
            raise EngineError(
                f"{engine}: {path.name} has {side} {had}, the bundle says {list(wanted)}"
            )


def check_inputs(
    spec: GraphSpec, inputs: Mapping[str, Value], kinds: tuple[Any, ...] = (np.ndarray,)
) -> None:
    """Refuse inputs that are missing, and arrays of other shapes or types than the graph's.

    Args:
        spec: what goes in.
        inputs: by name.
        kinds: of values that have a numpy `shape` and `dtype`; the engine answers for others.

    Raises:
        EngineError: with what was expected and what came.
    """
    for tensor in spec.inputs:
        array = inputs.get(tensor.name)
        if array is None:
            raise EngineError(f"{spec.file}: the input {tensor.name!r} is missing")
        if not isinstance(array, kinds):
            continue
        if not tensor.fits(tuple(array.shape)) or array.dtype != tensor.dtype:
            raise EngineError(
                f"{spec.file}: {tensor.name} must be {tensor.dtype} {tensor.shape}, "
                f"not {array.dtype} {array.shape}"
            )

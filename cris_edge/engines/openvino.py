"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from cris_edge.bundle import PHRASES, Bundle, GraphSpec, TensorSpec
from cris_edge.engines.base import Graph, Value, check_inputs, check_tensors, unfit_for_cpus
from cris_edge.errors import EngineError

KINDS = {"f32": "float32", "i64": "int64", "u8": "uint8"}
# Without a hint the CPU may compute in bfloat16, and answers would depend on the machine.
HINTS = {None: "f32", "bfloat16": "bf16"}


def _describe(ports: Sequence[Any]) -> list[TensorSpec]:
    """What goes in or out of a compiled model; the axis of phrases is not static."""
    return [
        TensorSpec(
            port.get_any_name(),
            KINDS.get(kind := port.element_type.get_type_name(), kind),
            tuple(PHRASES if axis.is_dynamic else axis.get_length() for axis in port.partial_shape),
        )
        for port in ports
    ]


class OpenVinoGraph:
    """A model compiled for each number of phrases that comes, in powers of two.

    With an open number OpenVINO is slower, and refuses some graphs.
    """

    def __init__(
        self, core: Any, path: Path, spec: GraphSpec, threads: int | None, precision: str | None
    ):
        self._core, self._spec, self._path = core, spec, path
        self._options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            # On CPUs with VNNI it would round what meets weights in 8 bits to 8 bits as well.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        }
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model = core.read_model(str(path))
        except RuntimeError as error:
            raise EngineError(f"openvino cannot load {path.name}: {error}") from error
        inputs, outputs = _describe(self._model.inputs), _describe(self._model.outputs)
        check_tensors("openvino", path, spec, inputs, outputs)
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._batched = [t.name for t in spec.inputs if t.shape[:1] == (PHRASES,)]
        self._compiled: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._local = threading.local()
        self._compile(1)

    def __call__(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Run the graph; values are numpy arrays, and inputs are not copied."""
        check_inputs(self._spec, inputs)
        feeds = {tensor.name: inputs[tensor.name] for tensor in self._spec.inputs}
        phrases = len(feeds[self._batched[0]]) if self._batched else 1
        batch = 1 << (phrases - 1).bit_length()
        if batch != phrases:
            feeds |= {name: _filled(feeds[name], batch) for name in self._batched}
        request = self._request(batch)
        try:
            results = request.infer(feeds, share_inputs=True)
        except RuntimeError as error:
            raise EngineError(f"openvino failed in {self._spec.file}: {error}") from error
        # The request writes its next results into the same memory.
        rows = phrases if self._batched else None
        return {name: np.array(results[name][:rows]) for name in self._outputs}

    def fetch(self, value: Value) -> NDArray[np.generic]:
        """A result as an array, which it is."""
        return np.asarray(value)

    def _request(self, batch: int) -> Any:
        """This thread's own request, as OpenVINO asks, for a number of phrases."""
        if not hasattr(self._local, "requests"):
            self._local.requests = {}
        requests: dict[int, Any] = self._local.requests
        if batch not in requests:
            requests[batch] = self._compile(batch).create_infer_request()
        return requests[batch]

    def _compile(self, batch: int) -> Any:
        with self._lock:
            if batch not in self._compiled:
                self._compiled[batch] = self._compile_anew(batch)
            return self._compiled[batch]

    def _compile_anew(self, batch: int) -> Any:
        try:
            shapes = {t.name: [batch, *t.shape[1:]] for t in self._spec.inputs}
            self._model.reshape({name: shapes[name] for name in self._batched})
            return self._core.compile_model(self._model, "CPU", self._options)
        except RuntimeError as error:
            raise EngineError(f"openvino cannot load {self._path.name}: {error}") from error


def _filled(array: NDArray[np.generic], batch: int) -> NDArray[np.generic]:
    """As many rows as were compiled for; what comes of the last one's copies is dropped."""
    return np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)])


_make_core = functools.cache(openvino.Core)
_making = threading.Lock()


def shared_core() -> Any:
    """The one core of this process, which is never given up.

    The CPU device gives the thread that loads it a stack for signals, and takes that memory back
    when it goes: in another thread, or with a later device's on top, without a word to the first.
    The next signal that Python handles, Ctrl-C or the end of a child, then ends the process.
    """
    # Two threads that ask at once would make two, one of which would go with its segmenter.
    with _making:
        return _make_core()


class OpenVino:
    """OpenVINO's CPU device."""

    name = "openvino"
    version: str = openvino.__version__.split("-")[0]

    def __init__(self) -> None:
        self._core = shared_core()

    @classmethod
    def unfit(cls, bundle: Bundle) -> str | None:
        """What has neither OpenVINO's nor ONNX files, and INT8 for TensorRT."""
        return unfit_for_cpus(cls.name, (".xml", ".onnx"), bundle)

    def refuses(self, precision: str) -> str | None:
        """Bfloat16, where the CPU has no instructions for it.

        OpenVINO would imitate it there, which is slow, or go on in float32 without a word.
        """
        has: list[str] = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" in has:
            return None
        return f"openvino cannot compute in {precision} on this CPU, which has {', '.join(has)}"

    def load(
        self, path: Path, spec: GraphSpec, threads: int | None, precision: str | None = None
    ) -> Graph:
        """Load an OpenVINO IR or an ONNX file."""
        return OpenVinoGraph(self._core, path, spec, threads, precision)

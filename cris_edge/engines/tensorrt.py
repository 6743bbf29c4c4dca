"""TensorRT on an NVIDIA GPU: engines are built at first use and kept in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cris_edge.bundle import FOR_TENSORRT, PHRASES, Bundle, GraphSpec, TensorSpec
from cris_edge.engines import cuda
from cris_edge.engines.base import Graph, Value, check_inputs, check_tensors
from cris_edge.engines.cuda import DeviceTensor
from cris_edge.engines.tensorrt_build import (
    BATCH,
    WORKSPACE,
    Job,
    build_plan,
    check_version,
    describe,
    logger_of,
)
from cris_edge.engines.tensorrt_cache import Entry, Field, PlanCache, default_folder
from cris_edge.errors import EngineError

logger = logging.getLogger(__name__)


def to_stderr(line: str) -> None:
    """Tell a person, who would wait for minutes otherwise without knowing why."""
    print(f"tensorrt: {line}", file=sys.stderr, flush=True)


class TensorRt:
    """TensorRT on CUDA's first device; CUDA_VISIBLE_DEVICES says which that is."""

    name = "tensorrt"

    def __init__(
        self,
        trt: Any = None,
        folder: Path | None = None,
        say: Callable[[str], None] = to_stderr,
    ):
        """Check that there is all that is needed.

        Args:
            trt: TensorRT's module; None imports `tensorrt`.
            folder: the cache; None takes the user's.
            say: is told, a line at a time, how far a build is.

        Raises:
            EngineError: TensorRT is too old, or there is no driver or no GPU.
            ImportError: there is no TensorRT.
        """
        self._trt = importlib.import_module("tensorrt") if trt is None else trt
        self.version = str(self._trt.__version__)
        check_version(self._trt)
        self._device = cuda.device()
        self._cache = PlanCache(folder or default_folder(), say)
        self._say = say
        self._resources = Resources()

    @classmethod
    def unfit(cls, bundle: Bundle) -> str | None:
        """What was not built for it: its builder takes no weights in 8 bits as others do."""
        if bundle.target == FOR_TENSORRT:
            return None
        return (
            f"tensorrt runs bundles that were built for it, and {bundle.name} was built for "
            f"{bundle.target}; run: python -m export.build --checkpoint X --target {FOR_TENSORRT}"
        )

    def refuses(self, precision: str) -> str | None:
        """Any precision: a strongly typed graph is computed in its own types."""
        return f"tensorrt cannot compute in {precision}, only in the types of the bundle's graphs"

    def load(
        self, path: Path, spec: GraphSpec, threads: int | None, precision: str | None = None
    ) -> Graph:
        """Load an ONNX file's engine from the cache, where it is built first if it is missing.

        Args:
            path: the ONNX file.
            spec: what goes in and out.
            threads: of no meaning here; the GPU computes.
            precision: None, for all are refused.

        Raises:
            EngineError: it cannot be read, built or loaded, or is not as specified.
        """
        del threads, precision
        graph = path.read_bytes()
        entry = plan_entry(self._trt, self._device, graph, spec)

        def build() -> bytes:
            return self._build(graph, spec)

        found = self._cache.obtain(entry, build)
        engine = self._deserialize(found.content)
        if engine is None and not found.built:
            reason = logger_of(self._trt).messages.take()
            logger.warning("%s is built anew: %s", self._cache.path(entry), reason)
            engine = self._deserialize(self._cache.obtain(entry, build, found.content).content)
        if engine is None:
            reason = logger_of(self._trt).messages.take()
            raise EngineError(f"tensorrt cannot load the engine of {path.name}: {reason}")
        _check_engine(self._trt, engine, path, spec)
        return TensorRtGraph(engine, spec, self._resources, logger_of(self._trt).messages.take)

    def _build(self, graph: bytes, spec: GraphSpec) -> bytes:
        device, start = self._device, time.monotonic()
        name = Path(spec.file).name
        self._say(f"{name}: building for {device.name} {device.capability}; once, may take minutes")
        timing = timing_entry(self._trt, device)
        known = self._cache.read(timing) or b""
        plan = build_plan(self._trt, Job(graph, spec, device.capability, known), self._say)
        if plan.timing:
            self._cache.write(timing, plan.timing)
        self._say(
            f"{name}: built in {time.monotonic() - start:.0f} s, kept in {self._cache.folder}"
        )
        return plan.content

    def _deserialize(self, plan: bytes) -> Any:
        log = logger_of(self._trt)
        log.messages.take()
        # The engine keeps its runtime alive.
        return self._trt.Runtime(log.object).deserialize_cuda_engine(plan)


def _hardware(trt: Any, device: cuda.Device) -> dict[str, Field]:
    return {
        "tensorrt": f"{trt.__name__} {trt.__version__}",
        "gpu": device.name,
        "capability": device.capability,
        "multiprocessors": device.multiprocessors,
        "platform": f"{sys.platform}-{platform.machine()}",
    }


def plan_entry(trt: Any, device: cuda.Device, graph: bytes, spec: GraphSpec) -> Entry:
    """What a plan depends on. Its precision is the graph's, which holds every tensor's type."""
    fields = _hardware(trt, device) | {
        "graph": hashlib.sha256(graph).hexdigest(),
        "inputs": [str(tensor) for tensor in spec.inputs],
        "outputs": [str(tensor) for tensor in spec.outputs],
        "phrases": list(BATCH),
        "strongly_typed": True,
        "tf32": False,
        "workspace": WORKSPACE,
    }
    return Entry(Path(spec.file).stem, fields)


def timing_entry(trt: Any, device: cuda.Device) -> Entry:
    """What measured times of kernels depend on."""
    return Entry("timing", _hardware(trt, device))


def _check_engine(trt: Any, engine: Any, path: Path, spec: GraphSpec) -> None:
    """Refuse an engine that is not as specified.

    Raises:
        EngineError: with both lists.
    """
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for place in range(engine.num_io_tensors):
        name = engine.get_tensor_name(place)
        tensor = describe(name, engine.get_tensor_dtype(name), engine.get_tensor_shape(name))
        incoming = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if incoming else outputs).append(tensor)
    check_tensors("tensorrt", path, spec, inputs, outputs)


class Resources:
    """What the graphs of an engine share: device memory, and each thread's stream."""

    def __init__(self) -> None:
        self.memory = cuda.Memory()
        self.lock = threading.Lock()
        """Held while an execution context is made: an engine makes one at a time."""
        self._local = threading.local()

    @property
    def stream(self) -> cuda.Stream:
        """This thread's."""
        if not hasattr(self._local, "stream"):
            self._local.stream = cuda.Stream()
        stream: cuda.Stream = self._local.stream
        return stream

    def staging(self, size: int) -> cuda.Pinned:
        """This thread's host memory for results, of `size` bytes or more."""
        pinned: cuda.Pinned | None = getattr(self._local, "pinned", None)
        if pinned is None or pinned.size < size:
            pinned = self._local.pinned = cuda.Pinned(size)
        return pinned


class TensorRtGraph:
    """An engine, with up to two execution contexts a thread: for one phrase, and for several."""

    def __init__(
        self, engine: Any, spec: GraphSpec, resources: Resources, reasons: Callable[[], str]
    ):
        """Run an engine that is as `spec` says; `reasons` gives TensorRT's latest errors."""
        self._engine, self._spec, self._resources = engine, spec, resources
        self._reasons = reasons
        self._local = threading.local()

    def __call__(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Run the graph.

        Args:
            inputs: numpy arrays, or what graphs of the same engine gave.

        Returns:
            `DeviceTensor`s, finished, which any thread may use.

        Raises:
            EngineError: the inputs do not fit, or TensorRT or CUDA failed.
        """
        count = count_phrases(self._spec, inputs)
        lanes = self._local.__dict__.setdefault("lanes", {})
        # Recorded work is for one shape; most often there is one phrase, or the graph has none.
        single = count == 1
        if single not in lanes:
            with self._resources.lock:
                lanes[single] = Lane(
                    self._engine, self._spec, self._resources, 1 if single else BATCH[-1]
                )
        lane: Lane = lanes[single]
        try:
            return lane.run(inputs, count)
        except cuda.CudaError:
            raise
        except EngineError as error:
            raise EngineError(f"{error}: {self._reasons()}") from error

    def fetch(self, value: Value) -> NDArray[np.generic]:
        """A result as an array, which is a copy."""
        if isinstance(value, np.ndarray):
            return value
        tensor: DeviceTensor = value
        staging, stream = self._resources.staging(tensor.nbytes), self._resources.stream
        stream.download(staging, tensor.block.pointer, tensor.nbytes)
        stream.wait()
        return np.array(staging.array(tensor.shape, tensor.dtype))


def count_phrases(spec: GraphSpec, inputs: Mapping[str, Value]) -> int:
    """How many phrases the inputs hold; 1 for a graph without any.

    Raises:
        EngineError: an input is missing or does not fit; too many phrases, none, or different
            numbers of them.
    """
    check_inputs(spec, inputs, (np.ndarray, DeviceTensor))
    batched = [tensor.name for tensor in spec.inputs if tensor.shape[:1] == (PHRASES,)]
    counts = {int(inputs[name].shape[0]) for name in batched}
    if len(counts) > 1 or not counts <= set(range(BATCH[0], BATCH[-1] + 1)):
        raise EngineError(
            f"{spec.file}: expected {BATCH[0]} to {BATCH[-1]} phrases, the same number in every "
            f"input, got {sorted(counts)}"
        )
    return counts.pop() if counts else 1


class Lane:
    """An execution context with memory of its own, for one thread.

    Addresses never change, so that work on one phrase can be recorded once as a CUDA graph and
    launched as a whole; after that nothing in the context may change. Work on several phrases,
    whose number varies, is not recorded: that would take a context for each number.
    """

    def __init__(self, engine: Any, spec: GraphSpec, resources: Resources, most: int):
        """Take memory for `most` phrases."""
        self._spec, self._resources, self._most = spec, resources, most
        self._stream = resources.stream
        self._count = 0
        self._recording: cuda.Recording | None = None
        self._record = most == 1
        self._pinned: dict[str, cuda.Pinned] = {}
        self._blocks: dict[str, cuda.Block] = {}
        # The engine is kept, for a context must not outlive it.
        self._engine, self._context = engine, engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"tensorrt cannot run {spec.file}; memory may be used up")
        for tensor in (*spec.inputs, *spec.outputs):
            block = resources.memory.take(nbytes(tensor, most))
            self._blocks[tensor.name] = block
            if not self._context.set_tensor_address(tensor.name, block.pointer):
                raise EngineError(f"tensorrt takes no memory for {tensor.name} of {spec.file}")

    def run(self, inputs: Mapping[str, Value], count: int) -> dict[str, Value]:
        """Run with inputs of `count` phrases, and wait for the results."""
        try:
            for tensor in self._spec.inputs:
                self._put(tensor, inputs[tensor.name])
            self._set_count(count)
            if self._recording is None:
                self._enqueue()
            else:
                self._stream.launch(self._recording)
            results: dict[str, Value] = {t.name: self._take(t, count) for t in self._spec.outputs}
        except BaseException:
            # Copies may be under way from memory that goes back to others when this ends.
            with contextlib.suppress(EngineError):
                self._stream.wait()
            raise
        self._stream.wait()
        if self._record:
            # Only now: the first run after shapes were set does more than the work itself.
            self._record = False
            self._recording = self._stream.record(self._enqueue)
        return results

    def _put(self, tensor: TensorSpec, value: Value) -> None:
        target = self._blocks[tensor.name].pointer
        if isinstance(value, DeviceTensor):
            self._stream.copy(target, value.block.pointer, value.nbytes)
            return
        if tensor.name not in self._pinned:
            self._pinned[tensor.name] = cuda.Pinned(nbytes(tensor, self._most))
        pinned = self._pinned[tensor.name]
        np.copyto(pinned.array(value.shape, value.dtype), value)
        self._stream.upload(target, pinned, value.nbytes)

    def _set_count(self, count: int) -> None:
        if count == self._count:
            return
        for tensor in self._spec.inputs:
            shape = shape_of(tensor, count)
            if not self._context.set_input_shape(tensor.name, shape):
                raise EngineError(
                    f"tensorrt refuses {shape} for {tensor.name} of {self._spec.file}"
                )
        for tensor in self._spec.outputs:
            found, wanted = (
                tuple(self._context.get_tensor_shape(tensor.name)),
                shape_of(tensor, count),
            )
            if found != wanted:
                raise EngineError(
                    f"{self._spec.file}: {tensor.name} comes out as {found}, expected {wanted}"
                )
        self._count = count

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.address):
            raise EngineError(f"tensorrt failed in {self._spec.file}")

    def _take(self, tensor: TensorSpec, count: int) -> DeviceTensor:
        """A copy of a result, for the next run writes to the same memory."""
        size = nbytes(tensor, count)
        block = self._resources.memory.take(size)
        self._stream.copy(block.pointer, self._blocks[tensor.name].pointer, size)
        return DeviceTensor(block, shape_of(tensor, count), np.dtype(tensor.dtype))


def shape_of(tensor: TensorSpec, count: int) -> tuple[int, ...]:
    """A tensor's shape for so many phrases."""
    return tuple(count if axis == PHRASES else int(axis) for axis in tensor.shape)


def nbytes(tensor: TensorSpec, count: int) -> int:
    """A tensor's size for so many phrases."""
    return int(np.prod(shape_of(tensor, count))) * np.dtype(tensor.dtype).itemsize

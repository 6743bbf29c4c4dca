"""CUDA as an engine needs it: memory that frees itself, streams, recorded work; calls checked.

The device is CUDA's first; the environment variable CUDA_VISIBLE_DEVICES says which that is.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda.bindings import runtime
from numpy.typing import NDArray

from cris_edge.errors import EngineError

try:
    from cuda.bindings.utils import get_cuda_native_handle as _address
except ImportError:  # cuda-python before 12.9.1
    _address = int

logger = logging.getLogger(__name__)

GRAIN = 512
"""Device memory is taken in multiples of it, in bytes, so that blocks are used again."""
NO_DRIVER = (
    "no NVIDIA driver that is new enough answers; on a desktop install or renew the driver, in a "
    "container run with --runtime nvidia (Jetson) or --gpus all, else take another engine"
)
ADVICE = {
    "cudaErrorInsufficientDriver": NO_DRIVER,
    "cudaErrorStubLibrary": NO_DRIVER,
    "cudaErrorSystemDriverMismatch": "driver and libraries do not match; restart the machine",
    "cudaErrorNoDevice": (
        "the driver sees no GPU; check CUDA_VISIBLE_DEVICES, and that this user may use it (on a "
        "Jetson: sudo usermod -aG video,render $USER), else take another engine"
    ),
    "cudaErrorDevicesUnavailable": "another process has the GPU for itself; end it",
    "cudaErrorMemoryAllocation": (
        "out of memory; end other programs that use the GPU (a Jetson shares its memory with "
        "them), use fewer threads, or take a smaller model"
    ),
}
"""What to do, by the name of CUDA's error."""


class CudaError(EngineError):
    """A call of CUDA that failed; `name` is CUDA's, such as `cudaErrorMemoryAllocation`."""

    def __init__(self, call: str, name: str):
        advice = ADVICE.get(name, "the process must be started again if it happens once more")
        super().__init__(f"CUDA: {call} failed with {name}: {advice}")
        self.name = name


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of CUDA's runtime; gives its result, or None where it has none.

    Raises:
        CudaError: the call failed.
    """
    try:
        status, *results = function(*arguments)
    except RuntimeError as error:  # what cuda-python 12 raises where there is no libcuda
        logger.debug("%s: %s", function.__name__, error)
        raise CudaError(function.__name__, "cudaErrorInsufficientDriver") from error
    if status != runtime.cudaError_t.cudaSuccess:
        raise CudaError(function.__name__, getattr(status, "name", str(status)))
    return results[0] if results else None


def _finally(owner: object, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function when `owner` is gone, but not when the process ends, which frees all."""
    weakref.finalize(owner, function, *arguments).atexit = False


@dataclass(frozen=True)
class Device:
    """The GPU, as far as an engine built for one differs from an engine for another."""

    name: str
    capability: str
    """Compute capability, such as `8.7`."""
    multiprocessors: int
    """By which an Orin Nano and an AGX Orin differ, whose names are the same."""


def device() -> Device:
    """The first device.

    Raises:
        CudaError: there is no driver or no device.
    """
    call(runtime.cudaGetDeviceCount)
    properties = call(runtime.cudaGetDeviceProperties, 0)
    name = properties.name
    return Device(
        name.decode("utf-8", "replace").rstrip("\0") if isinstance(name, bytes) else str(name),
        f"{properties.major}.{properties.minor}",
        int(properties.multiProcessorCount),
    )


def answers() -> bool:
    """Whether a driver and a device answer."""
    try:
        return int(call(runtime.cudaGetDeviceCount)) > 0
    except CudaError:
        return False


class Block:
    """Device memory; its memory pool has it back when nobody holds the block."""

    def __init__(self, pointer: int, size: int):
        self.pointer, self.size = pointer, size


class Memory:
    """Device memory that is used again, for CUDA stops the device to free it.

    Whoever gives up a block must have waited for all that reads or writes it.
    """

    def __init__(self) -> None:
        # Deques and not a lock: garbage is collected, and blocks come back, at any point.
        self._free: dict[int, deque[int]] = {}
        _finally(self, _free_all, self._free)

    def take(self, size: int) -> Block:
        """A block of at least `size` bytes.

        Raises:
            CudaError: the memory is used up, after what lay idle was freed.
        """
        size = max(GRAIN, -(-size // GRAIN) * GRAIN)
        try:
            pointer = self._free.setdefault(size, deque()).pop()
        except IndexError:
            pointer = self._allocate(size)
        block = Block(pointer, size)
        _finally(block, self._give, size, pointer)
        return block

    def _allocate(self, size: int) -> int:
        try:
            return int(call(runtime.cudaMalloc, size))
        except CudaError as error:
            if error.name != "cudaErrorMemoryAllocation":
                raise
            runtime.cudaGetLastError()  # takes the error back, which CUDA keeps otherwise
            _free_all(self._free)
            return int(call(runtime.cudaMalloc, size))

    def _give(self, size: int, pointer: int) -> None:
        self._free.setdefault(size, deque()).append(pointer)


def _free_all(free: dict[int, deque[int]]) -> None:
    for pointers in list(free.values()):
        with contextlib.suppress(IndexError):
            while True:
                runtime.cudaFree(pointers.pop())


class DeviceTensor:
    """A tensor on the device, row by row without gaps; it belongs to whoever holds it."""

    def __init__(self, block: Block, shape: tuple[int, ...], dtype: np.dtype[Any]):
        self.block, self.shape, self.dtype = block, shape, dtype

    @property
    def nbytes(self) -> int:
        """Its size, which may be less than its block's."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class Pinned:
    """Host memory that stays where it is, which the device reads and writes by itself."""

    def __init__(self, size: int):
        self.size = size
        self.pointer = int(call(runtime.cudaHostAlloc, max(size, 1), runtime.cudaHostAllocDefault))
        _finally(self, runtime.cudaFreeHost, self.pointer)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """A view of its beginning, which must not outlive it."""
        size = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_uint8 * size).from_address(self.pointer)
        return np.frombuffer(memoryview(memory), dtype).reshape(shape)


class Recording:
    """Work that was recorded once and is launched as a whole: a CUDA graph."""

    def __init__(self, graph: Any):
        self.handle = call(runtime.cudaGraphInstantiate, graph, 0)
        _finally(self, runtime.cudaGraphExecDestroy, self.handle)


class Stream:
    """Work in order, apart from other streams. Of one thread at a time."""

    def __init__(self) -> None:
        self._handle = call(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking)
        _finally(self, runtime.cudaStreamDestroy, self._handle)

    @property
    def address(self) -> int:
        """Its handle as a number."""
        return int(_address(self._handle))

    def upload(self, target: int, source: Pinned, size: int) -> None:
        """Copy `size` bytes from the host to the device, some time later."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(runtime.cudaMemcpyAsync, target, source.pointer, size, kind, self._handle)

    def download(self, target: Pinned, source: int, size: int) -> None:
        """Copy `size` bytes from the device to the host, some time later."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(runtime.cudaMemcpyAsync, target.pointer, source, size, kind, self._handle)

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes on the device, some time later."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        call(runtime.cudaMemcpyAsync, target, source, size, kind, self._handle)

    def wait(self) -> None:
        """Wait until all that was asked of it is done."""
        call(runtime.cudaStreamSynchronize, self._handle)

    def launch(self, recording: Recording) -> None:
        """Run recorded work, some time later."""
        call(runtime.cudaGraphLaunch, recording.handle, self._handle)

    def record(self, work: Callable[[], None]) -> Recording | None:
        """Record what `work` asks of this stream, without running it.

        Returns:
            None where the work is of a kind that cannot be recorded; it can still be run.
        """
        # This mode makes CUDA refuse what would be done now and not again at every launch.
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(runtime.cudaStreamBeginCapture, self._handle, mode)
        problem: EngineError | None = None
        try:
            work()
        except EngineError as error:
            problem = error
        finally:
            # A stream that is left recording could do nothing else.
            status, graph = runtime.cudaStreamEndCapture(self._handle)
        try:
            if problem is not None:
                raise problem
            call(lambda: (status,))
            return Recording(graph)
        except EngineError as error:
            runtime.cudaGetLastError()
            logger.info("not recorded as a CUDA graph: %s", error)
            return None
        finally:
            if status == runtime.cudaError_t.cudaSuccess and graph is not None:
                runtime.cudaGraphDestroy(graph)

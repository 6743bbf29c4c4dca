"""From an ONNX graph to TensorRT's plan for one GPU.

The graph says in which type everything is computed, and TensorRT keeps to it: networks are
strongly typed, and no flag lets TensorRT choose a lower precision. `trt` is the module: `tensorrt`,
or `tensorrt_rtx_bindings`, which has the same API and builds for GPUs that are not there.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cris_edge.bundle import MAX_PHRASES, PHRASES, GraphSpec, TensorSpec
from cris_edge.engines.base import check_tensors
from cris_edge.errors import EngineError

logger = logging.getLogger(__name__)

MINIMUM = (10, 3)
"""The first TensorRT whose strongly typed networks do all that is needed: JetPack 6.1's."""
BATCH = (1, 1, MAX_PHRASES)
"""Least, usual and most phrases that a plan is built for; it is fastest with the usual."""
WORKSPACE = 2**30
"""Bytes of scratch memory that a layer may take while it runs."""
KINDS = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
EVERY = 5.0
"""Seconds between two lines of progress."""


class Plan(NamedTuple):
    """What a build gives."""

    content: bytes
    timing: bytes
    """How long TensorRT's kernels took, which makes later builds faster; may be empty."""


@dataclass(frozen=True)
class Job:
    """One build."""

    graph: bytes
    """The ONNX file's content, with its weights inside."""
    spec: GraphSpec
    capability: str
    """The GPU's compute capability, such as `8.7`."""
    timing: bytes = b""
    """Of an earlier build for the same GPU by the same TensorRT."""

    @property
    def name(self) -> str:
        """The graph's file."""
        return Path(self.spec.file).name


def is_rtx(trt: Any) -> bool:
    """Whether the module is TensorRT for RTX."""
    return "rtx" in str(trt.__name__)


def check_version(trt: Any) -> None:
    """Refuse a TensorRT that is too old.

    Raises:
        EngineError: with the version found and what to do.
    """
    numbers = tuple(int(part) for part in str(trt.__version__).split(".")[:2])
    if numbers < MINIMUM and not is_rtx(trt):
        raise EngineError(
            f"TensorRT {trt.__version__} is too old; {MINIMUM[0]}.{MINIMUM[1]} or later is needed: "
            "on a Jetson install JetPack 6.1 or later, elsewhere run: "
            "pip install 'cris-edge[tensorrt]'"
        )


class Messages:
    """TensorRT's latest errors, which its calls do not return."""

    def __init__(self) -> None:
        self._latest: deque[str] = deque(maxlen=20)

    def add(self, text: str) -> None:
        """Remember one."""
        self._latest.append(text)

    def take(self) -> str:
        """All of them, and forget them."""
        texts = list(self._latest)
        self._latest.clear()
        return "; ".join(texts) or "it gave no reason"


class Logger(NamedTuple):
    """TensorRT's logger, and the errors it took."""

    object: Any
    messages: Messages


@functools.cache
def logger_of(trt: Any) -> Logger:
    """The one logger of the process, as TensorRT wants it: errors are kept, the rest logged."""
    messages = Messages()
    severe = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    def log(self: Any, severity: Any, message: str) -> None:
        del self
        if severity in severe:
            messages.add(message)
        logger.debug("%s: %s", getattr(severity, "name", severity), message)

    def init(self: Any) -> None:
        trt.ILogger.__init__(self)

    return Logger(type("Log", (trt.ILogger,), {"__init__": init, "log": log})(), messages)


def build_plan(trt: Any, job: Job, say: Callable[[str], None]) -> Plan:
    """Build a plan; takes from seconds to many minutes.

    Args:
        trt: TensorRT's module.
        job: what to build, and for which GPU.
        say: is told how far it is, a line at a time.

    Raises:
        EngineError: the graph cannot be parsed, is not as specified, or cannot be built.
        KeyboardInterrupt: the user stopped the build.
    """
    log = logger_of(trt)
    log.messages.take()
    builder = trt.Builder(log.object)
    network = _parse(trt, builder, job)
    config = _configure(trt, builder, job)
    progress = Progress(job.name, say)
    if hasattr(trt, "IProgressMonitor"):
        # TensorRT does not keep it alive, so this function does.
        monitor = progress.monitor(trt)
        config.progress_monitor = monitor
    host = builder.build_serialized_network(network, config)
    if progress.stopped:
        raise KeyboardInterrupt
    if host is None:
        reasons = log.messages.take()
        advice = "; end other programs to free memory" if "memory" in reasons.lower() else ""
        raise EngineError(f"tensorrt cannot build {job.name}: {reasons}{advice}")
    cache = config.get_timing_cache()
    return Plan(bytes(host), b"" if cache is None else bytes(cache.serialize()))


def _parse(trt: Any, builder: Any, job: Job) -> Any:
    """The network of a graph, whose inputs and outputs are checked before minutes go by."""
    # From TensorRT 11 on all networks are strongly typed, whether the flag is there or not.
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    log = logger_of(trt)
    parser = trt.OnnxParser(network, log.object)
    # The content, so that what was hashed is what is built. Weights in other files, which no hash
    # covers, would be looked for beside the graph: it is said to lie where no file can be.
    if not parser.parse(job.graph, f"{os.devnull}/{job.name}"):
        errors = [_explain(parser.get_error(place)) for place in range(parser.num_errors)]
        raise EngineError(
            f"tensorrt cannot read {job.name}:\n  "
            + ("\n  ".join(errors) or log.messages.take())
            + "\nbuild the bundle anew, with an export of this version: "
            "python -m export.build --checkpoint X --target jetson"
        )
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    outputs = [network.get_output(place) for place in range(network.num_outputs)]
    check_tensors(
        "tensorrt",
        Path(job.name),
        job.spec,
        [describe(t.name, t.dtype, t.shape) for t in inputs],
        [describe(t.name, t.dtype, t.shape) for t in outputs],
    )
    return network


def _explain(error: Any) -> str:
    """One of the parser's errors: node, operator, what is wrong."""
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    where = f"node {name or error.node()}" + (f" ({operator})" if operator else "")
    return f"{where}: {error.desc()}"


def describe(name: str, dtype: Any, shape: Sequence[int]) -> TensorSpec:
    """A tensor of TensorRT's as a bundle describes it; a first axis that varies is `PHRASES`."""
    axes = [int(axis) for axis in shape]
    named: tuple[int | str, ...] = tuple(axes)
    if axes and axes[0] == -1:
        named = (PHRASES, *axes[1:])
    return TensorSpec(name, KINDS.get(dtype.name, dtype.name), named)


def _configure(trt: Any, builder: Any, job: Job) -> Any:
    """How to build: full float32 where the graph says float32, bounded memory, batches."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    # TensorRT would round float32 to 10 bits of mantissa before it multiplies matrices.
    config.clear_flag(trt.BuilderFlag.TF32)
    batched = [tensor for tensor in job.spec.inputs if tensor.shape[:1] == (PHRASES,)]
    if batched:
        profile = builder.create_optimization_profile()
        for tensor in batched:
            profile.set_shape(tensor.name, *((count, *tensor.shape[1:]) for count in BATCH))
        config.add_optimization_profile(profile)
    if is_rtx(trt):
        _aim(trt, config, job)
    timing = config.create_timing_cache(job.timing)
    if timing is not None:
        config.set_timing_cache(timing, False)
    return config


def _aim(trt: Any, config: Any, job: Job) -> None:
    """Have TensorRT for RTX build for a GPU that need not be there.

    Raises:
        EngineError: it does not build for that one.
    """
    name = "SM" + job.capability.replace(".", "")
    known = trt.ComputeCapability.__members__
    if name not in known:
        raise EngineError(
            f"{trt.__name__} does not build for the compute capability {job.capability}; "
            f"it knows {', '.join(known)}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[name], 0)


class Progress:
    """Tells how far a build is, and stops it when the user does."""

    def __init__(self, name: str, say: Callable[[str], None]):
        self.stopped = False
        self._name, self._say = name, say
        self._start = self._last = time.monotonic()
        self._steps: dict[str, int] = {}

    def start(self, phase: str, steps: int) -> None:
        """A phase of so many steps begins."""
        self._steps[phase] = steps

    def step(self, phase: str, done: int) -> bool:
        """A step is done; False asks TensorRT to stop."""
        try:
            now = time.monotonic()
            if now - self._last >= EVERY:
                self._last = now
                steps = self._steps.get(phase, 0)
                self._say(f"{self._name}: {phase} {done + 1}/{steps}, {now - self._start:.0f} s")
        except KeyboardInterrupt:  # must not go through TensorRT's C++
            self.stopped = True
        return not self.stopped

    def finish(self, phase: str) -> None:
        """A phase ends."""
        self._steps.pop(phase, None)

    def monitor(self, trt: Any) -> Any:
        """An `IProgressMonitor` that reports here."""
        methods = {
            "__init__": lambda _: trt.IProgressMonitor.__init__(_),
            "phase_start": lambda _, phase, parent, steps: self.start(phase, steps),
            "step_complete": lambda _, phase, step: self.step(phase, step),
            "phase_finish": lambda _, phase: self.finish(phase),
        }
        return type("Monitor", (trt.IProgressMonitor,), methods)()

"""One model to INT8: calibrate, judge, give layers back to float, put the bundle in place."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cris_edge import Segmenter
from cris_edge.bundle import GRAPHS, Bundle, write_zip
from cris_edge.files import check_image_name
from export.build import Job as ExportJob
from export.build import build as export
from export.place import check_place, put_in_place, workspace
from export.tensorrt import check_peak, largest_halves, rehearse
from quantize.account import Account
from quantize.budget import fewest
from quantize.calibration import quantise
from quantize.candidate import TARGETS, Candidates, describe
from quantize.errors import QuantizeError
from quantize.figures import Figures, loss
from quantize.graphs import Layer, head_layers, read_float
from quantize.samples import Feeds, choose
from quantize.sensitivity import Damage, draw_chart, sweep
from quantize.speed import UNTIMED, Timing, race
from quantize.written import TENSORRT, open_written, tensorrt_there
from training.evaluate import evaluate
from training.judged import VALIDATION
from training.report import Part, describe_machine, engine_in_words, today
from training.selection import Data, select, spread

CALIBRATED_WITH = 300
SWEPT_WITH = 8
"""Of these samples each layer is quantised alone on so many."""
PROBED_WITH = 4
"""Photos of these on which overflow of float16 is looked for."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One model to quantise; `bundle` or `checkpoint` says which."""

    out: Path
    """The INT8 bundle's folder."""
    data: Data
    """Its training split is calibrated with, its others judged by."""
    bundle: Path | None = None
    """Of ONNX graphs in float."""
    checkpoint: Path | None = None
    target: str = "openvino"
    budget: float = 1.0
    """Points of mIoU that may be lost."""
    samples: int = CALIBRATED_WITH
    """To calibrate with."""
    splits: tuple[str, ...] = VALIDATION
    """To judge by. The budget chooses layers by them, so none is a test split."""
    limit: int | None = None
    """Samples of each part to judge by; None for all."""
    threads: int | None = None
    graphs: tuple[str, ...] = GRAPHS
    """Those that may have layers in INT8."""
    chart: Path | None = None
    """Sweep the layers whatever the loss, and draw that there."""
    zip: bool = False
    """Also as one file, the folder's name with `.zip`."""
    force: bool = False


def calibrate(job: Job, say: Say = print) -> Bundle:
    """Quantise, judge, and put the bundle in place; an older one there is replaced.

    Raises:
        QuantizeError: the model cannot be quantised or is quantised already, the data do not do,
            the bundle misses the budget or is not faster, or there is no room for it.
        ExportError: the checkpoint cannot be exported, or something else than a bundle is at the
            bundle's place; for TensorRT, a tensor is beyond float16, or it refuses a graph.
        DataError: the data are not as they should be.
        BundleError, CheckpointError, EngineError: of the model, or its engine.

    In every case what was at the bundle's place stays, and nothing is left beside it.
    """
    if not math.isfinite(job.budget) or job.budget < 0:
        raise QuantizeError(f"expected a budget of 0 points of mIoU or more, got {job.budget:g}")
    out = job.out.resolve()
    beside = [out.with_name(f"{out.name}.zip")] if job.zip else []
    check_place(out, beside)
    if job.chart is not None:
        _check_chart(job.chart, out)
    if importlib.util.find_spec("nncf") is None:
        raise QuantizeError("NNCF is not installed; run: pip install 'cris-edge[quantize]'")
    try:
        with workspace(out) as temporary:
            bundle = _Run(job, temporary, say).write(temporary / "finished" / out.name)
            for place in beside:
                write_zip(bundle, bundle.folder.with_name(place.name))
            put_in_place(bundle, out, beside, temporary, say)
    except OSError as error:
        # Of a rename, where to; the disk may also be that of temporary files.
        place = error.filename2 or error.filename or out
        room = "make room there, or " if error.errno == errno.ENOSPC else ""
        raise QuantizeError(
            f"{place} cannot be written: {error.strerror or error}; {room}choose another --out. "
            "Nothing is left half written"
        ) from error
    return Bundle.open(out)


def _check_chart(chart: Path, out: Path) -> None:
    check_image_name(chart)
    if out in (chart.resolve(), *chart.resolve().parents):
        raise QuantizeError(
            f"--sensitivity {chart}: lies in the bundle's folder, which holds its own files alone; "
            "choose another place"
        )


class _Run:
    """The steps of one job."""

    def __init__(self, job: Job, workspace: Path, say: Say):
        self.job, self.say, self.workspace = job, say, workspace
        self.target = TARGETS[job.target]
        # What is wrong with the data shows before anything is exported.
        judged = select(job.data, job.splits, limit=job.limit)
        self.samples = choose(job.data, judged, job.samples)
        self.source = self._open()
        floats = read_float(self.source)
        self.float = Segmenter(self.source.folder, self.target.engine, job.threads)
        self.feeds = Feeds(self.float, self.samples)
        self.feeds.check()
        say(f"calibrating with {self._said_of_samples()}")
        quantised = {
            name: quantise(name, model, self.feeds, self.target.tensorrt)
            for name, model in floats.items()
        }
        self.candidates = Candidates(self.source, job.target, floats, quantised)
        self.head = head_layers(floats["pair"], self.candidates.layers)
        self.damage: Damage = {}
        self.before = self._evaluate(self.float)

    def _open(self) -> Bundle:
        if self.job.bundle is not None:
            return Bundle.open(self.job.bundle)
        assert self.job.checkpoint is not None
        folder = self.workspace / "float"
        export(ExportJob(self.job.checkpoint, folder, "onnx", "float16"), self.say)
        return Bundle.open(folder)

    def write(self, folder: Path) -> Bundle:
        """Write the bundle that keeps the budget into a folder.

        Raises:
            QuantizeError: there is none, or it is not faster, and nothing is forced.
        """
        if self.job.chart is not None:
            self._sweep()
            self.head = [layer for layer in self.head if not self._harmless(layer)]
        tried: dict[int, list[Part]] = {}

        def lost(given_back: int) -> float:
            kept = self.kept(given_back)
            bundle = self.candidates.write(kept, folder)
            tried[given_back] = self._evaluate(self._segmenter(bundle))
            points = loss(self.before, tried[given_back])
            total = len(self.candidates.layers)
            self.say(f"{len(kept)} of {total} layers in INT8: {points:.2f} points of mIoU lost")
            return points

        reasons = []
        try:
            given_back = fewest(len(self.kept(0)), lost, self.job.budget)
        except QuantizeError as error:
            reasons.append(str(error))
            given_back = 0
        kept = self.kept(given_back)
        if self.job.chart is not None:
            draw_chart(self.job.chart, self.damage, kept)
            self.say(f"sensitivity of {len(self.damage)} layers: {self.job.chart}")
        # Before it is timed, or built by NVIDIA's builder.
        self._refuse(reasons)
        return self._finish(self.candidates.write(kept, folder), tried[given_back], kept, reasons)

    def kept(self, given_back: int) -> list[Layer]:
        """The layers in INT8 when so many of the most sensitive are given back to float."""
        if given_back and not self.damage:
            self._sweep()
        usual = [
            layer
            for layer in self.candidates.layers
            if layer.graph in self.job.graphs and layer not in self.head
        ]
        ordered = sorted(usual, key=lambda layer: -self.damage.get(layer, 0.0))
        return [layer for layer in usual if layer in ordered[given_back:]]

    def _harmless(self, layer: Layer) -> bool:
        """Whether a sweep found that it does no more than half of the layers do."""
        return self.damage[layer] <= sorted(self.damage.values())[len(self.damage) // 2]

    def _sweep(self) -> None:
        self.damage = sweep(self.candidates, self.feeds.first(SWEPT_WITH), self.job.threads)

    def _segmenter(self, bundle: Bundle) -> Segmenter:
        """What judges a candidate; for TensorRT, one that does not overflow."""
        if not self.target.tensorrt:
            return Segmenter(bundle.folder, self.target.engine, self.job.threads)
        photos = [sample.photo.read() for sample in spread(self.samples, PROBED_WITH)]
        for name, (tensor, peak) in largest_halves(bundle, photos).items():
            check_peak(f"{name}: {tensor}", peak)
        return open_written(bundle, self.job.threads)

    def _evaluate(self, segmenter: Segmenter) -> list[Part]:
        return evaluate(segmenter, self.job.data, self.job.splits, limit=self.job.limit)

    def _finish(
        self, bundle: Bundle, parts: Sequence[Part], kept: Sequence[Layer], reasons: list[str]
    ) -> Bundle:
        """Time the bundle, refuse one that is not worth it, and let it carry its report."""
        timing, engine = self._time(bundle), engine_in_words(self.float.info)
        account = Account(
            before=Figures(self.source.size, timing.before, self.before, engine),
            after=Figures(bundle.size, timing.after, parts, engine),
            timed=timing.said,
            lost=loss(self.before, parts),
            budget=self.job.budget,
            kept=kept,
            given_back=[layer for layer in self.candidates.layers if layer not in kept],
            always_float=self.target.always_float,
            damage=self.damage,
        )
        for line in account.lines():
            self.say(line)
        reasons = [*reasons, *account.slower()]
        self._refuse(reasons)
        report = account.as_dict(reasons)
        about = {
            "judged": {"splits": self.job.splits, "limit": self.job.limit},
            "calibration": self._calibration(),
            "made_with": self._made_with(),
        }
        return describe(bundle, {"quantization": report | about})

    def _refuse(self, reasons: Sequence[str]) -> None:
        """End here where there are reasons to, unless the bundle is wanted in spite of them."""
        if reasons and not self.job.force:
            raise QuantizeError(
                f"{'; '.join(reasons)}. No bundle was written; --force writes it all the same, and "
                "lets it say so"
            )

    def _time(self, bundle: Bundle) -> Timing:
        """Race a bundle against the float one; for TensorRT against the same model in half."""
        if not self.target.tensorrt:
            both = self.float, self._segmenter(bundle)
            said = f"both bundles, {engine_in_words(self.float.info)}"
        elif tensorrt_there():
            half = self.candidates.write((), self.workspace / "half")
            both = Segmenter(half.folder, TENSORRT), Segmenter(bundle.folder, TENSORRT)
            said = f"the float model in fp16, and INT8, {engine_in_words(both[1].info)}"
        else:
            rehearse(bundle, self.say)
            return Timing(UNTIMED, {}, {})
        return Timing(said, *race(both, self.samples[0]))

    def _said_of_samples(self) -> str:
        photos = len({str(sample.photo.path) for sample in self.samples})
        return f"{len(self.samples)} pairs of {photos} photos of the training split"

    def _calibration(self) -> dict[str, Any]:
        return {
            "data": self.job.data.name,
            "samples": self._said_of_samples(),
            "photos": sorted({sample.photo.path.name for sample in self.samples}),
        }

    def _made_with(self) -> dict[str, Any]:
        info = self.float.info
        return {
            "nncf": importlib.metadata.version("nncf"),
            "engine": f"{info.engine} {info.engine_version}",
            "threads": info.threads,
            "machine": describe_machine(),
            "date": today(),
        }

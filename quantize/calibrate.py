"""`python -m quantize.calibrate`: a float model's layers to INT8, as many as a budget allows.

The three graphs of a bundle are quantised after training, calibrated with photos and phrases of the
training split, and judged on those of the validation split. While the loss of mIoU exceeds the
budget, the most sensitive layers go back to float. What misses the budget, or is not faster than
the float bundle on this machine with the same engine, is not written unless it is forced.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cris_edge import Segmenter
from cris_edge.bundle import Bundle
from cris_edge.errors import CrisEdgeError
from export import build as export
from quantize.budget import fewest
from quantize.candidate import TARGETS, Candidates, describe
from quantize.errors import QuantizeError
from quantize.figures import Figures, agreement, loss, table
from quantize.graphs import Layer, head_layers, quantise, read_float
from quantize.samples import Feeds, choose
from quantize.sensitivity import Damage, draw_chart, sweep
from quantize.speed import race
from training.arguments import at_least
from training.evaluate import data_of, evaluate
from training.report import Part, describe_machine, today
from training.selection import Data, select

CALIBRATED_WITH = 300
SWEPT_WITH = 8
"""Of these samples each layer is quantised alone on so many."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One model to quantise; `bundle` or `checkpoint` says which."""

    out: Path
    """The INT8 bundle's folder."""
    data: Data
    """Its training split is calibrated with, its others judged by."""
    data_name: str
    """What the bundle says of them."""
    bundle: Path | None = None
    """Of ONNX graphs in float."""
    checkpoint: Path | None = None
    target: str = "openvino"
    budget: float = 1.0
    """Points of mIoU that may be lost."""
    samples: int = CALIBRATED_WITH
    """To calibrate with."""
    splits: tuple[str, ...] = ()
    """To judge by; none for the usual ones."""
    limit: int | None = None
    """Samples of each part to judge by; None for all."""
    threads: int | None = None
    chart: Path | None = None
    """Sweep the layers whatever the loss, and draw that there."""
    force: bool = False


def calibrate(job: Job, say: Say = print) -> Bundle:
    """Quantise, judge, and put the bundle in place; an older one there is replaced.

    Raises:
        QuantizeError: the model cannot be quantised or is quantised already, the data do not do,
            the bundle misses the budget or is not faster, or there is no room for it.
        ExportError: the checkpoint cannot be exported, or something else than a bundle is at the
            bundle's place.
        DataError: the data are not as they should be.
        BundleError, CheckpointError, EngineError: of the model, or its engine.

    In every case what was at the bundle's place stays, and nothing is left beside it.
    """
    if not math.isfinite(job.budget) or job.budget < 0:
        raise QuantizeError(f"expected a budget of 0 points of mIoU or more, got {job.budget:g}")
    out = job.out.resolve()
    export.check_place(out, [])
    anchor = next(parent for parent in out.parents if parent.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=anchor, prefix=f".{out.name}.") as workspace:
            folder = Path(workspace) / out.name
            bundle = _Run(job, Path(workspace), say).write(folder)
            export.put_in_place(bundle, out, [], Path(workspace), say)
    except OSError as error:
        raise QuantizeError(
            f"{out}: the bundle cannot be written: {error.strerror or error}; make room, or choose "
            "another --out. What was there is as it was"
        ) from error
    return Bundle.open(out)


class _Run:
    """The steps of one job."""

    def __init__(self, job: Job, workspace: Path, say: Say):
        self.job, self.say, self.workspace = job, say, workspace
        self.source = self._open()
        engine = TARGETS[job.target].engine
        self.float = Segmenter(self.source.folder, engine=engine, threads=job.threads)
        floats = read_float(self.source)
        judged = select(job.data, job.splits, limit=job.limit)
        self.samples = choose(job.data, judged, job.samples)
        self.feeds = Feeds(self.float, self.samples)
        self.feeds.check()
        say(f"calibrating with {self.calibration()}")
        quantised = {name: quantise(name, model, self.feeds) for name, model in floats.items()}
        self.candidates = Candidates(self.source, job.target, floats, quantised)
        self.head = head_layers(floats["pair"], self.candidates.layers)
        self.damage: Damage = {}
        self.before = self._evaluate(self.float)

    def _open(self) -> Bundle:
        if self.job.bundle is not None:
            return Bundle.open(self.job.bundle)
        assert self.job.checkpoint is not None
        folder = self.workspace / "float"
        export.build(export.Job(self.job.checkpoint, folder, "onnx", "float16"), self.say)
        return Bundle.open(folder)

    def calibration(self) -> str:
        """What the ranges are measured with, in words."""
        photos = len({str(sample.photo.path) for sample in self.samples})
        return f"{len(self.samples)} pairs of {photos} photos of the training split"

    def write(self, folder: Path) -> Bundle:
        """Write the bundle that keeps the budget into a folder.

        Raises:
            QuantizeError: there is none, or it is not faster, and nothing is forced.
        """
        if self.job.chart is not None:
            self._sweep()
            self.head = [layer for layer in self.head if not self._harmless(layer)]
            draw_chart(self.job.chart, self.damage, self.head)
            self.say(f"sensitivity of {len(self.damage)} layers: {self.job.chart}")
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
            if not self.job.force:
                raise
            reasons.append(str(error))
            given_back = 0
        kept = self.kept(given_back)
        return self._finish(self.candidates.write(kept, folder), tried[given_back], kept, reasons)

    def kept(self, given_back: int) -> list[Layer]:
        """The layers in INT8 when so many of the most sensitive are given back to float."""
        if given_back and not self.damage:
            self._sweep()
        usual = [layer for layer in self.candidates.layers if layer not in self.head]
        ordered = sorted(usual, key=lambda layer: -self.damage.get(layer, 0.0))
        return [layer for layer in usual if layer in ordered[given_back:]]

    def _harmless(self, layer: Layer) -> bool:
        """Whether a sweep found that it does no more than half of the layers do."""
        return self.damage[layer] <= sorted(self.damage.values())[len(self.damage) // 2]

    def _sweep(self) -> None:
        self.damage = sweep(self.candidates, self.feeds.first(SWEPT_WITH), self.job.threads)

    def _segmenter(self, bundle: Bundle) -> Segmenter:
        engine = TARGETS[self.job.target].engine
        return Segmenter(bundle.folder, engine=engine, threads=self.job.threads)

    def _evaluate(self, segmenter: Segmenter) -> list[Part]:
        return evaluate(segmenter, self.job.data, self.job.splits, limit=self.job.limit)

    def _finish(
        self, bundle: Bundle, parts: Sequence[Part], kept: Sequence[Layer], reasons: list[str]
    ) -> Bundle:
        """Time the bundle, refuse one that is not worth it, and let it carry its report."""
        times = race([self.float, self._segmenter(bundle)], self.feeds)
        before = Figures(self.source.size, times[0], self.before)
        after = Figures(bundle.size, times[1], parts)
        same = agreement(self.before, parts)
        self.say(table({"float": before, "INT8": after}))
        self.say(f"masks of float and INT8 agree on {same:.2%} of pixels")
        given_back = [layer for layer in self.candidates.layers if layer not in kept]
        self.say(f"{len(kept)} layers in INT8; {len(given_back)} in float, and norms and softmax:")
        self.say("  " + (", ".join(map(str, given_back)) or "none"))
        ratio = times[0]["total"] / times[1]["total"]
        if ratio <= 1:
            reasons.append(
                f"INT8 is not faster than float with {self.float.info.engine} on this machine: "
                f"{times[1]['total']:.2f} ms a photo and phrase instead of {times[0]['total']:.2f}"
            )
        if reasons and not self.job.force:
            raise QuantizeError(
                f"{'; '.join(reasons)}. Nothing was written; --force writes the bundle all the "
                "same, and lets it say so"
            )
        points = loss(self.before, parts)
        report = {
            "budget": self.job.budget,
            "lost": round(points, 4),
            "within_budget": points <= self.job.budget,
            "times_faster": round(ratio, 3),
            "forced_in_spite_of": reasons,
            "float": before.as_dict(),
            "int8": after.as_dict(),
            "mask_agreement": same,
            "layers": self._layers(kept, given_back),
            "calibration": self._calibration(),
            "made_with": self._made_with(),
        }
        return describe(bundle, {"quantization": report})

    def _layers(self, kept: Sequence[Layer], given_back: Sequence[Layer]) -> dict[str, Any]:
        swept = {str(layer): round(value, 8) for layer, value in self.damage.items()}
        return {
            "int8": len(kept),
            "float": [str(layer) for layer in given_back],
            "always_float": ["LayerNormalization", "Softmax"],
            "sensitivity": swept or "not swept: the budget was kept at once",
        }

    def _calibration(self) -> dict[str, Any]:
        return {
            "data": self.job.data_name,
            "samples": self.calibration(),
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


EXAMPLES = """examples:
  # OpenVINO, at most one point of mIoU lost on the validation split
  python -m quantize.calibrate --bundle cris_edge/models/cris_edge_s --data data \\
      --target openvino --budget 1.0 --out bundles/s_int8

  # from a checkpoint, for ONNX Runtime, with a chart of what each layer does
  python -m quantize.calibrate --checkpoint runs/s/best.safetensors --data data \\
      --target onnx --out bundles/s_int8_onnx --sensitivity layers.png

  # a first look: made-up scenes, few of them, and a bundle whatever comes of it
  python -m quantize.calibrate --bundle cris_edge/models/cris_edge_s --scenes 8 --samples 16 \\
      --target openvino --out /tmp/s_int8 --force

  # then
  python -m quantize.report cris_edge/models/cris_edge_s bundles/s_int8 --data data

A bundle that misses the budget or is not faster here is refused with status 2, and what was at
--out stays. docs/quantize.md tells what is quantised and how.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    summary, _, details = str(__doc__).partition("\n\n")
    arguments = argparse.ArgumentParser(
        prog="python -m quantize.calibrate",
        description=f"{summary.partition(': ')[2]}\n\n{details}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, number = arguments.add_argument, at_least(1)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", type=Path, help="a float bundle of ONNX graphs (folder or zip)")
    what.add_argument("--checkpoint", type=Path, help="a .safetensors file of training.train")
    on = arguments.add_mutually_exclusive_group(required=True)
    on.add_argument("--data", type=Path, help="a data folder or a prepared reference set")
    on.add_argument("--scenes", type=number, help="so many made-up scenes instead, for each use")
    add("--photos", type=Path, help="photos of a reference set, if they were moved since")
    add("--target", choices=sorted(TARGETS), default="openvino", help="default: %(default)s")
    add("--out", type=Path, required=True, help="the bundle's folder; an older bundle is replaced")
    add(
        "--budget",
        type=float,
        default=1.0,
        help="points of mIoU that may be lost, of each part of the data (default: %(default)s)",
    )
    add(
        "--samples",
        type=at_least(2),
        default=CALIBRATED_WITH,
        help="of the training split, to calibrate with (default: %(default)s)",
    )
    add("--split", action="append", default=[], metavar="NAME", help="to judge by; default: val")
    add("--limit", type=number, help="judge by at most so many samples of each part")
    add("--threads", type=number, help="processor threads; default: the engine's choice")
    add(
        "--sensitivity",
        type=Path,
        metavar="CHART",
        help="quantise every layer alone, whatever the loss, and draw there what it does",
    )
    add("--force", action="store_true", help="write the bundle in any case; it says why not")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parser().parse_args(argv)
    try:
        scenes = options.scenes
        calibrate(
            Job(
                out=options.out,
                data=data_of(options),
                data_name=f"{scenes} made-up scenes" if scenes else str(options.data),
                bundle=options.bundle,
                checkpoint=options.checkpoint,
                target=options.target,
                budget=options.budget,
                samples=options.samples,
                splits=tuple(options.split),
                limit=options.limit,
                threads=options.threads,
                chart=options.sensitivity,
                force=options.force,
            )
        )
    except (CrisEdgeError, OSError) as error:
        print(f"quantize.calibrate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

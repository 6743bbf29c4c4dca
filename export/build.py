"""`python -m export.build`: from a checkpoint to a bundle that has been compared with torch.

The checkpoint's batch norms are folded, its graphs written, described and compared; only a bundle
that agrees is put in place. Whatever fails leaves what was there before.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cris_edge.bundle import Bundle, write_specification, write_zip
from export.description import TOKENIZER, describe, verification
from export.errors import ExportError
from export.graphs import Source, split
from export.onnx import OPSET, export_onnx
from export.openvino import export_openvino
from export.place import check_place, put_in_place, workspace
from export.tensorrt import VERSIONS, export_jetson, prove
from export.verify import Agreement, find_photos, in_words, table, verify
from export.weights import (
    at_input_size,
    check_finite,
    count_batch_norms,
    fold_batch_norms,
    round_to_eight,
    round_to_half,
)
from export.whole import write_whole
from training import checkpoint
from training.arguments import documented, refusals
from training.checkpoint import Checkpoint
from training.model import CRIS

PHOTOS = Path("samples/photos")
WHOLE = ".onnx"
"""The suffix of the file that holds all graphs as one."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a bundle is to run."""

    suffix: str
    """Of the graphs' main files."""
    export: Callable[[Source, Path, str], None]
    """Writes one graph in a precision."""
    precisions: tuple[str, ...] = ("float32", "float16")
    """The first is the default."""
    prove: Callable[[Bundle, Sequence[Path], Callable[[str], None]], None] | None = None
    """Looks for what the comparison with torch does not find."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else the description says of the target."""


TARGETS = {
    "onnx": Target(
        ".onnx",
        export_onnx,
        precisions=("float32", "float16", "weights8"),
        facts={"opset": OPSET},
    ),
    "openvino": Target(".xml", export_openvino),
    "jetson": Target(
        ".onnx",
        export_jetson,
        precisions=("fp16", "float32"),
        prove=prove,
        facts={"opset": OPSET, "tensorrt": VERSIONS},
    ),
}
PREPARED = {
    "float32": "weights stay in float32",
    "float16": "weights rounded to float16; they are computed with in float32",
    "weights8": "weights rounded to 8 bits with a scale for each output channel; they are computed "
    "with in float32",
    "fp16": "weights rounded to float16; computed in float16, norms and softmax in float32",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One export."""

    checkpoint: Path
    out: Path
    """The bundle's folder."""
    target: str = "onnx"
    precision: str | None = None
    """None: the target's default."""
    photos: tuple[Path, ...] = (PHOTOS,)
    """Photos or folders of them to compare on."""
    licence: str | None = None
    """Of the weights; None: the checkpoint's, else Apache-2.0."""
    zip: bool = False
    """Also as one file, the folder's name with `.zip`."""
    whole: bool = False
    """Also as one graph, the folder's name with `.onnx`; of the target `onnx` alone."""
    threshold: float | None = None
    """Probability above which a pixel belongs to the mask; None: the checkpoint's."""
    input_size: int | None = None
    """Side of the input in pixels; None: the one that the model was trained at."""


def build(job: Job, say: Callable[[str], None] = print) -> list[Agreement]:
    """Export, compare, and put the bundle in place; an older one there is replaced.

    Args:
        job: what to export and where to.
        say: takes the lines that tell what is done.

    Returns:
        The agreement with torch, one entry an engine.

    Raises:
        ExportError: the model cannot be exported or does not agree with torch, the target has not
            what is asked for, or the place is taken by something else; nothing is left behind.
        CheckpointError: the checkpoint is missing or damaged.
        InputError: a photo cannot be read.
    """
    out = job.out.resolve()
    job = _with_precision(job)
    if job.threshold is not None and not 0 < job.threshold < 1:
        raise ExportError(
            f"--threshold: expected a probability between 0 and 1, got {job.threshold}"
        )
    beside = _beside(out, job)
    check_place(out, beside)
    photos = find_photos(job.photos)
    kept = at_input_size(checkpoint.load(job.checkpoint), job.input_size)
    check_finite(kept.model)
    _check_vocabulary(kept)
    stored = _prepare(kept.model, str(job.precision), say)
    with workspace(out) as temporary:
        folder = temporary / "finished" / out.name
        folder.mkdir(parents=True)
        bundle = _write(folder, job, kept, stored, say)
        if (further := TARGETS[job.target].prove) is not None:
            further(bundle, photos, say)
        agreements = verify(bundle, kept.model, stored, kept.tokenizer, photos)
        say(f"agreement with torch ({in_words(bundle.precision)}):")
        say(table(agreements))
        verified = {"verification": verification(agreements, len(photos), bundle.precision)}
        bundle = write_specification(folder, dict(bundle.about) | verified)
        _write_beside(bundle, [folder.with_name(place.name) for place in beside], photos, say)
        put_in_place(bundle, out, beside, temporary, say)
    return agreements


def _with_precision(job: Job) -> Job:
    """The job with the target's default where no precision is asked for."""
    known = TARGETS[job.target].precisions
    if job.precision is not None and job.precision not in known:
        raise ExportError(
            f"the target {job.target} has the precisions {', '.join(known)}, not {job.precision}"
        )
    return dataclasses.replace(job, precision=job.precision or known[0])


def _beside(out: Path, job: Job) -> list[Path]:
    """Places of the files that go beside the bundle's folder; refuses what the target has not."""
    if job.whole and job.target != "onnx":
        raise ExportError(
            f"one whole graph is made for the target onnx, not for {job.target}; leave --whole "
            "out, or export with --target onnx"
        )
    wanted = {".zip": job.zip, WHOLE: job.whole}
    return [out.with_name(out.name + suffix) for suffix in wanted if wanted[suffix]]


def _check_vocabulary(kept: Checkpoint) -> None:
    ids, rows = kept.tokenizer.end_id + 1, kept.model.config.vocab_size
    if ids > rows:
        raise ExportError(
            f"the checkpoint's tokenizer has {ids} ids, its text encoder knows {rows}"
        )


def _prepare(model: CRIS, precision: str, say: Callable[[str], None]) -> CRIS:
    """The model whose weights are stored."""
    folded = fold_batch_norms(model)
    before, after = count_batch_norms(model), count_batch_norms(folded)
    say(f"{model.config.name}: {before - after} of {before} batch norms folded")
    say(PREPARED[precision])
    if precision == "float32":
        return folded
    return round_to_eight(folded) if precision == "weights8" else round_to_half(folded)


def _write(
    folder: Path, job: Job, kept: Checkpoint, stored: CRIS, say: Callable[[str], None]
) -> Bundle:
    """Fill a folder with graphs, tokenizer and description."""
    target, specs = TARGETS[job.target], {}
    for name, source in split(stored).items():
        specs[name] = source.spec(name + target.suffix)
        target.export(source, folder / specs[name].file, str(job.precision))
        size = sum(path.stat().st_size for path in folder.glob(f"{name}.*"))
        say(f"  {specs[name].file:14}{size / 1e6:8.2f} MB")
    (folder / TOKENIZER).write_text(kept.tokenizer.to_json(), encoding="utf-8")
    description = describe(
        kept,
        specs,
        target={"name": job.target, **target.facts},
        precision=str(job.precision),
        threshold=job.threshold,
        licence=job.licence,
    )
    return write_specification(folder, description)


def _write_beside(
    bundle: Bundle, files: Sequence[Path], photos: Sequence[Path], say: Callable[[str], None]
) -> None:
    """Write the bundle's other forms: as one zip file, as one graph."""
    for file in files:
        if file.suffix == WHOLE:
            write_whole(bundle, file, photos, say)
        else:
            write_zip(bundle, file)


EXAMPLES = """
examples:
  # the bundle that ships: ONNX, read by ONNX Runtime and OpenVINO, weights stored in 8 bits
  python -m export.build --checkpoint training/checkpoints/cris_edge_s.safetensors --target onnx \\
      --precision weights8 --out cris_edge/models/cris_edge_s

  # OpenVINO's own files, as a folder (bundles/s_ov) and as one file (bundles/s_ov.zip)
  python -m export.build --checkpoint runs/s/best.safetensors --target openvino \\
      --out bundles/s_ov --zip

  # also as a single graph from frame and tokens to logits (bundles/s.onnx)
  python -m export.build --checkpoint runs/s/best.safetensors --target onnx \\
      --out bundles/s --whole

  # strongly typed ONNX for TensorRT, computed in float16; a Jetson builds its engines from it
  python -m export.build --checkpoint runs/s/best.safetensors --target jetson \\
      --precision fp16 --out bundles/s_jetson

  # a smaller input than in training: faster, and small things are lost
  python -m export.build --checkpoint runs/s/best.safetensors --input-size 224 --out bundles/s224

  # compared on photos of your own instead of the samples
  python -m export.build --checkpoint runs/s/best.safetensors --out bundles/s \\
      --photos photos/ desk.jpg

  # then
  cris-edge predict samples/photos/000000196393.jpg "white cat" --bundle bundles/s -o overlay.png

Every export is compared with torch at once, by every installed engine that reads it. When it does
not agree, the command ends with status 2, and what was at --out stays as it was.
docs/bundle.md describes the bundle.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("export.build", __doc__, EXAMPLES)
    add = arguments.add_argument
    add("--checkpoint", type=Path, required=True, help="a .safetensors file of training.train")
    add("--target", choices=sorted(TARGETS), default="onnx", help="what to write (default: onnx)")
    add(
        "--precision",
        choices=tuple(PREPARED),
        help="float16 stores the weights in half the space, weights8 (onnx alone) in a quarter, "
        "and both compute in float32; fp16, for jetson and its default, computes in float16 "
        "(default elsewhere: float32); for int8 there is python -m quantize.calibrate",
    )
    add(
        "--input-size",
        type=int,
        metavar="PIXELS",
        help="side of the input, a multiple of 32 (default: that of the training)",
    )
    add(
        "--threshold",
        type=float,
        metavar="P",
        help="probability above which a pixel belongs to the mask (default: the checkpoint's own); "
        "training.evaluate --threshold tells what another one is worth",
    )
    add("--out", type=Path, required=True, help="the bundle's folder; an older bundle is replaced")
    add("--zip", action="store_true", help="also write the bundle as one file, OUT.zip")
    add(
        "--whole",
        action="store_true",
        help="also write the three graphs joined into one, OUT.onnx, for programs that want a "
        "single file (target onnx alone)",
    )
    add(
        "--photos",
        type=Path,
        nargs="+",
        default=[PHOTOS],
        metavar="PLACE",
        help=f"photos, or folders of them, to compare on (default: {PHOTOS})",
    )
    add("--licence", help="of the weights (default: the checkpoint's, else Apache-2.0)")
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the result is its exit status."""
    options = vars(parser().parse_args(arguments))
    return refusals(lambda: build(Job(**options | {"photos": tuple(options["photos"])})))


if __name__ == "__main__":
    sys.exit(main())

"""Bundles by a model's name, with random weights: for speed, which weights do not change.

`python -m samples.bench.models NAME FOLDER` writes one, in a process that may import torch.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cris_edge.errors import CrisEdgeError, InputError
from samples.bench.contender import Model
from samples.bench.process import ROOT, Worker, WorkerError

RANDOM = "random weights"
PHOTO = ROOT / "samples" / "photos" / "000000000599.jpg"
NAME = re.compile(r"\w+")


def find_model(given: str, workspace: Path) -> Model:
    """A bundle's path as it is, or the name of a model that is exported with random weights.

    Args:
        given: a path, or a name in `training.model.config.MODELS`.
        workspace: where exported bundles are kept for the run.

    Raises:
        InputError: it is neither, or torch is missing, or the export failed.
    """
    if Path(given).exists():
        return Model(Path(given).name, given)
    # Whatever looks like a path is left to the runtime, whose reason stands in its row.
    if not NAME.fullmatch(given):
        return Model(given, given)
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            f"{given!r} is no bundle; a model's name needs torch: pip install 'cris-edge[export]'"
        )
    folder = workspace / given
    worker = Worker(["-m", "samples.bench.models", given, str(folder)], os.cpu_count() or 1)
    try:
        worker.ask()
    except WorkerError as error:
        raise InputError(f"{given!r} is no bundle, and cannot be made: {error}") from error
    finally:
        worker.close()
    return Model(given, str(folder), RANDOM)


def write_random(name: str, folder: Path) -> None:
    """Export a model with random weights in float32.

    Raises:
        CrisEdgeError: there is no such model, or its export failed.
    """
    import torch

    from cris_edge.tokenizer import build
    from export.build import Job
    from export.build import build as export
    from training import checkpoint
    from training.data.vocabulary import clip_merges
    from training.model import CRIS
    from training.model.config import MODELS

    if name not in MODELS:
        raise InputError(f"no model {name!r}; there are {', '.join(MODELS)}")
    torch.manual_seed(0)
    config, merges = MODELS[name], clip_merges()
    # A smaller vocabulary is the beginning of CLIP's, so that the ids fit the model.
    surplus = build(merges).vocab_size - config.vocab_size
    tokenizer = build(merges[: len(merges) - surplus])
    with tempfile.TemporaryDirectory() as place:
        kept = Path(place) / f"{name}.safetensors"
        checkpoint.save(kept, CRIS(config).eval(), tokenizer, {"training_data": RANDOM})
        # One photo to compare on: that the export is right is not the question here.
        export(Job(kept, folder, photos=(PHOTO,)), say=lambda line: print(line, file=sys.stderr))


def main(arguments: Sequence[str]) -> int:
    """Write one bundle; the last line of stderr says why not."""
    try:
        write_random(arguments[0], Path(arguments[1]))
    except (CrisEdgeError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print("{}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

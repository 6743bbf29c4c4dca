"""What a bundle says of itself: the fields of its bundle.json."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import cris_edge
from cris_edge.bundle import GraphSpec
from export.verify import PHRASES, Agreement, bounds
from training.checkpoint import Checkpoint
from training.report import today

TOKENIZER = "tokenizer.json"
UNRECORDED = "not recorded in the checkpoint"


def describe(
    kept: Checkpoint,
    specs: Mapping[str, GraphSpec],
    *,
    target: Mapping[str, Any],
    precision: str,
    threshold: float | None,
    licence: str | None,
) -> dict[str, Any]:
    """The fields of bundle.json but for what comparing finds; docs/bundle.md tells what they mean.

    Args:
        kept: what is exported.
        specs: its graphs by name.
        target: where the bundle is to run: its `name`, and what else is known of it.
        precision: of the graphs.
        threshold: probability above which a pixel belongs to the mask; None: the checkpoint's.
        licence: of the weights; None: the checkpoint's, else Apache-2.0.
    """
    config, notes = kept.model.config, kept.metadata
    return {
        "name": config.name,
        "description": "CRIS: a photo and a phrase in, the mask of what the phrase means out",
        "image": {
            "size": config.input_size,
            "mean": list(config.mean),
            "std": list(config.std),
            "interpolation": "cubic",
            "border": "mean",
            "colour": "RGB",
        },
        "text": {"tokenizer": TOKENIZER, "word_len": config.word_len},
        "mask": {
            "threshold": kept.threshold if threshold is None else threshold,
            "stride": 4,
            "interpolation": "cubic",
            "align_corners": True,
        },
        "target": dict(target),
        "precision": precision,
        "graphs": {name: dataclasses.asdict(spec) for name, spec in specs.items()},
        "licence": licence or notes.get("licence", "Apache-2.0"),
        "training_data": notes.get("training_data", UNRECORDED),
        "accuracy": _accuracy(notes),
        "parameters": sum(parameter.numel() for parameter in kept.model.parameters()),
        "versions": versions_of(["torch", "onnx", "onnxscript"], target["name"])
        | ({"trained_with_torch": notes["torch"]} if "torch" in notes else {}),
        "created": today(),
    }


def _accuracy(notes: Mapping[str, str]) -> dict[str, Any]:
    text = notes.get("accuracy")
    if text is None:
        return {"note": UNRECORDED}
    try:
        figures = json.loads(text)
    except ValueError:
        figures = None
    return figures if isinstance(figures, dict) else {"note": text}


def versions_of(packages: Sequence[str], target: str) -> dict[str, str]:
    """Our version, Python's, and those of packages and of what writes a target's files."""
    packages = [*packages, *(["openvino"] if target == "openvino" else [])]
    versions = {"cris_edge": cris_edge.__version__, "python": platform.python_version()}
    return versions | {package: importlib.metadata.version(package) for package in packages}


def verification(agreements: Sequence[Agreement], photos: int, precision: str) -> dict[str, Any]:
    """The field of bundle.json that tells how the graphs agree with torch.

    Args:
        agreements: of each engine.
        photos: number of those compared on.
        precision: of the graphs.
    """
    return {
        "photos": photos,
        "phrases": list(PHRASES),
        "bounds": bounds(precision),
        "engines": [dataclasses.asdict(agreement) for agreement in agreements],
    }

"""Bundles of which some layers compute in INT8, written for an engine."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from cris_edge.bundle import Bundle, write_specification
from export.description import versions_of
from export.onnx import store_weights_as_half
from export.openvino import write_openvino
from quantize.calibration import FLOAT
from quantize.graphs import UNWEIGHTED, Layer, find_layers, mix
from quantize.jetson import FACTS, in_half
from training.report import today


@dataclass(frozen=True)
class Target:
    """Where an INT8 bundle is to run."""

    engine: str
    """That it is judged with here, and the float bundle too; and timed with, but for TensorRT."""
    tensorrt: bool = False
    """Quantised for TensorRT, and computed in half where it is not INT8."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the description says of the target."""

    @property
    def always_float(self) -> tuple[str, ...]:
        """Kinds of nodes that are never quantised."""
        return (*FLOAT, *UNWEIGHTED) if self.tensorrt else FLOAT


TARGETS = {
    "onnx": Target("onnxruntime"),
    "openvino": Target("openvino"),
    "jetson": Target("onnxruntime", tensorrt=True, facts=FACTS),
}
NOT_OURS = ("format", "version", "files", "verification")
"""What a float bundle says of itself alone."""


class Candidates:
    """A float bundle with its quantised graphs, from which bundles with fewer layers are made."""

    def __init__(
        self,
        source: Bundle,
        target: str,
        floats: Mapping[str, onnx.ModelProto],
        quantised: Mapping[str, onnx.ModelProto],
    ):
        self.source, self.target = source, target
        self._floats, self._quantised = floats, quantised
        self.layers = [
            layer
            for name, model in floats.items()
            for layer in find_layers(name, model, quantised[name], TARGETS[target].tensorrt)
        ]

    def _mix(self, name: str, kept: Collection[Layer]) -> onnx.ModelProto:
        """One graph in float32 but for its own layers among `kept`."""
        nodes = {layer.node for layer in kept if layer.graph == name}
        return mix(self._floats[name], self._quantised[name], nodes)

    def write_onnx(self, name: str, kept: Collection[Layer], folder: Path) -> Path:
        """Write one graph into a folder as ONNX in float32; its own layers in `kept` are INT8."""
        model = self._mix(name, kept)
        store_weights_as_half(model)
        file = folder / f"{name}.onnx"
        file.write_bytes(model.SerializeToString())
        return file

    def _write_graph(self, name: str, kept: Collection[Layer], folder: Path) -> Path:
        """The same in the target's form."""
        if TARGETS[self.target].tensorrt:
            file = folder / f"{name}.onnx"
            file.write_bytes(in_half(self._mix(name, kept), file.name).SerializeToString())
            return file
        file = self.write_onnx(name, kept, folder)
        if self.target != "openvino":
            return file
        path = file.with_suffix(".xml")
        write_openvino(file, path, "float16")
        file.unlink()
        return path

    def write(self, kept: Collection[Layer], folder: Path) -> Bundle:
        """Write a bundle; what is in the folder is replaced.

        Raises:
            OSError: there is no room for it.
            ExportError: for TensorRT: a weight is beyond float16.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        specs = {
            name: dataclasses.replace(spec, file=self._write_graph(name, kept, folder).name)
            for name, spec in self.source.graphs.items()
        }
        shutil.copyfile(self.source.path(self.source.tokenizer), folder / self.source.tokenizer)
        return write_specification(folder, self._fields() | {
            "graphs": {name: dataclasses.asdict(spec) for name, spec in specs.items()},
        })  # fmt: skip

    def _fields(self) -> dict[str, Any]:
        about = {name: value for name, value in self.source.about.items() if name not in NOT_OURS}
        facts = about.get("target", {}) if self.target == "onnx" else TARGETS[self.target].facts
        made_with = about.get("versions", {}) | versions_of(["onnx", "nncf"], self.target)
        return about | {
            "precision": "int8",
            "target": {**facts, "name": self.target},
            "versions": made_with,
            "created": today(),
        }


def describe(bundle: Bundle, fields: Mapping[str, Any]) -> Bundle:
    """The bundle with more fields in its description."""
    about = {name: value for name, value in bundle.about.items() if name not in NOT_OURS}
    return write_specification(bundle.folder, about | dict(fields))

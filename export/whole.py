"""A bundle's three graphs as one ONNX file, for programs that want a single graph.

The written graphs are joined, not traced anew. The file tells in its metadata how a photo and a
phrase are prepared and what the logits mean, so it is used without the bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, compose, helper

from cris_edge import Segmenter
from cris_edge.bundle import GRAPHS, Bundle, GraphSpec
from cris_edge.engines import installed, open_engine
from cris_edge.engines.base import Graph
from cris_edge.errors import EngineError
from cris_edge.photo import Photo, as_photo
from export.errors import ExportError
from export.onnx import strip
from export.verify import PHRASES, run_graphs

ENGINE = "onnxruntime"
"""What compares the one graph with the three."""
MAX_DIFFERENCE = 1e-4
"""Greatest absolute difference of a logit: the nodes are the same, the engine may fuse others."""
MAX_PHOTOS = 2
"""Photos to compare on: graphs that were joined wrongly differ on any."""
ABOUT = "cris_edge"
"""The metadata's entry with the fields of `bundle.json` below, as JSON. `text.tokenizer` names the
entry that holds the tokenizer, as in a bundle it names the file."""
FIELDS = (
    "name",
    "description",
    "image",
    "text",
    "mask",
    "precision",
    "licence",
    "training_data",
    "parameters",
    "accuracy",
)
NO_GRAPH = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
"""What onnx raises for a graph that is none."""


def write_whole(
    bundle: Bundle, path: Path, photos: Sequence[Path], say: Callable[[str], None]
) -> None:
    """Join a bundle's graphs into one file and compare it with them.

    Args:
        bundle: of ONNX graphs.
        path: the file to write: inputs `frame` uint8 (1, S, S, 3) and `tokens` int64 (N, L),
            output `logits` float32 (N, 1, S/4, S/4).
        photos: files, at least one, of which the first are compared on.
        say: takes the line that tells how near the results are, or that they were not compared.

    Raises:
        ExportError: the graphs do not fit together, or the one does not give the logits of the
            three; the file is of no use then.
        InputError: a photo cannot be read.
    """
    graphs = {name: onnx.load(bundle.path(spec.file)) for name, spec in bundle.graphs.items()}
    try:
        model = join(graphs)
        strip(model)
        helper.set_model_props(model, _metadata(bundle))
        onnx.checker.check_model(model, full_check=True)
    except (ValueError, *NO_GRAPH) as error:
        raise ExportError(f"{path.name}: the graphs do not make one: {error}") from error
    path.write_bytes(model.SerializeToString())
    if ENGINE not in installed():
        say(f"  {path.name} has not been compared: {ENGINE} is not installed")
        return
    difference = _compare(bundle, path, [as_photo(photo) for photo in photos[:MAX_PHOTOS]])
    say(f"  {path.name}: logits within {difference:.1e} of the three graphs'")


def join(graphs: Mapping[str, onnx.ModelProto]) -> onnx.ModelProto:
    """One model of the graphs `photo`, `phrase` and `pair`.

    Every name inside gets its graph's before it, `photo/relu`: torch gives many twice. Inputs and
    outputs keep theirs, and weights that are equal lie in the model once.

    Raises:
        ValueError: the graphs have other versions, or outputs that `pair` does not take.
    """
    # Prefixed to the last name, for versions of onnx differ in what they leave out when asked to.
    photo, phrase, pair = (compose.add_prefix(graphs[name], f"{name}/") for name in GRAPHS)
    sources = compose.merge_models(photo, phrase, [])
    links = [(value.name, f"pair/{_own(value.name)}") for value in sources.graph.output]
    # The exporter's name stays; the library would put its own.
    model = compose.merge_models(
        sources,
        pair,
        links,
        name="whole",
        producer_name=pair.producer_name,
        producer_version=pair.producer_version,
    )
    # The library lists the operators' version once a graph; that it is one it has checked.
    versions = {entry.domain: entry.version for entry in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*entry) for entry in versions.items())
    ends = (*model.graph.input, *model.graph.output)
    _rename(model.graph, {value.name: _own(value.name) for value in ends})
    _rename(model.graph, _drop_copies(model.graph))
    return model


def _own(name: str) -> str:
    """A name without its graph's."""
    return name.partition("/")[2]


def _drop_copies(graph: onnx.GraphProto) -> dict[str, str]:
    """Drop weights that are there already, and tell for each the name of the one that stays."""
    kept: dict[bytes, TensorProto] = {}
    copies = {}
    for tensor in graph.initializer:
        nameless = TensorProto()
        nameless.CopyFrom(tensor)
        nameless.ClearField("name")
        content = hashlib.sha256(nameless.SerializeToString()).digest()
        copies[tensor.name] = kept.setdefault(content, tensor).name
    stay = list(kept.values())
    del graph.initializer[:]
    graph.initializer.extend(stay)
    return copies


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors wherever nodes read or write them, and inputs and outputs."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)


def _metadata(bundle: Bundle) -> dict[str, str]:
    """What a program needs that has the file alone."""
    about = {field: bundle.about[field] for field in FIELDS}
    return {
        ABOUT: json.dumps(about, ensure_ascii=False),
        bundle.tokenizer: bundle.path(bundle.tokenizer).read_text(encoding="utf-8"),
    }


def _compare(bundle: Bundle, path: Path, photos: Sequence[Photo]) -> float:
    """Greatest difference of a logit from the three graphs' in the same engine.

    Raises:
        ExportError: it is more than `MAX_DIFFERENCE`, or the engine cannot run the file.
    """
    photo, phrase, pair = (bundle.graphs[name] for name in GRAPHS)
    spec = GraphSpec(path.name, photo.inputs + phrase.inputs, pair.outputs)
    segmenter = Segmenter(bundle.folder, engine=ENGINE)
    try:
        whole = open_engine(ENGINE).load(path, spec, None)
        differences = [_difference(whole, segmenter, photo) for photo in photos]
    except EngineError as error:
        raise ExportError(f"{path.name}: the whole graph cannot be run: {error}") from error
    # numpy's maximum, which keeps what is no number.
    difference = float(np.max(differences))
    if not difference <= MAX_DIFFERENCE:
        raise ExportError(
            f"{path.name}: the whole graph does not agree with the three it was joined from. "
            f"Expected logits within {MAX_DIFFERENCE}; they differ by {difference:.1e}. "
            "Nothing was written; export without --whole"
        )
    return difference


def _difference(whole: Graph, segmenter: Segmenter, photo: Photo) -> float:
    """The same for one photo and `PHRASES`: each by itself, then all of them in one batch."""
    phrases, frame = segmenter.phrases, segmenter.letterbox.frame(photo)[None]
    tokens = np.stack([phrases.tokenizer.encode(text, phrases.word_len) for text in PHRASES])
    found = [
        whole.fetch(whole({"frame": frame, "tokens": batch})["logits"])
        for batch in (*tokens[:, None], tokens)
    ]
    wanted = np.stack(run_graphs(segmenter, photo))
    return float(np.max(np.abs(np.concatenate(found) - wanted)))

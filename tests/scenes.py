"""A small data folder of made-up scenes, and a small model, for tests of evaluation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from cris_edge.bundle import Bundle, write_specification
from cris_edge.photo import Photo
from cris_edge.tokenizer import Tokenizer, build
from export.graphs import split as split_graphs
from export.onnx import export_onnx
from training.data.vocabulary import clip_merges
from training.model import CRIS, CRISConfig
from training.model.config import MODELS
from training.predictor import letterbox_of

PHRASES = ["red car", "the dog", "white cat", "the man on the left, in the red shirt"]
"""That the sensitive model has seen."""

CATEGORIES = {1: "person", 3: "car", 18: "dog"}
COLOURS = {1: (60, 120, 220), 3: (200, 60, 30), 18: (40, 160, 40)}
HEIGHTS = (96, 120, 80, 100)
WIDTH = 144


def boxes_of(scene: int) -> list[tuple[int, int, int, int, int]]:
    """(category id, x1, y1, x2, y2) of the objects of a scene."""
    return [
        (3, 6 + scene, 30, 46, 58),
        (3, 96, 28 + scene, 138, 62),
        (18, 58, 50, 84, 70 + scene),
    ]


def write_folder(root: Path, scenes: int = 4) -> Path:
    """Write photos, labels and written expressions of both splits, two cars and a dog a photo."""
    (root / "photos").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    written: list[dict[str, Any]] = []
    for scene in range(scenes):
        height = HEIGHTS[scene % len(HEIGHTS)]
        picture = np.full((height, WIDTH, 3), (90, 90, 90), np.uint8)
        name = f"scene_{scene}.png"
        images.append({"id": scene, "file_name": name, "width": WIDTH, "height": height})
        for place, (category, x1, y1, x2, y2) in enumerate(boxes_of(scene)):
            picture[y1:y2, x1:x2] = COLOURS[category]
            key = 10 * scene + place
            annotations.append(
                {
                    "id": key,
                    "image_id": scene,
                    "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                }
            )
        texts = [f"car {scene} parked at left", "the car over there"]
        written.append({"image_id": scene, "annotation_id": 10 * scene, "expressions": texts})
        cv2.imwrite(str(root / "photos" / name), picture)
    write_labels(root, images, annotations, written)
    return root


Entries = Sequence[Mapping[str, Any]]


def write_labels(root: Path, images: Entries, annotations: Entries, written: Entries) -> None:
    """The files of a data folder beside its photos, the same for both splits."""
    categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (root / f"instances_{split}.json").write_text(json.dumps(content))
        (root / f"expressions_written_{split}.json").write_text(json.dumps(written))


def small_tokenizer() -> Tokenizer:
    """CLIP's tokenizer with its first 1,000 merges."""
    return build(clip_merges()[:1000])


def small_model(tokenizer: Tokenizer, seed: int = 0) -> CRIS:
    """A whole CRIS of the least sizes, random weights, in evaluation mode."""
    torch.manual_seed(seed)
    config = CRISConfig(
        name="small",
        input_size=64,
        vision_layers=(1, 1, 1, 1),
        vision_width=8,
        vision_grid=2,
        embed_dim=32,
        word_len=8,
        vocab_size=tokenizer.vocab_size,
        context_length=8,
        text_width=64,
        text_layers=1,
        neck_channels=(16, 32, 64),
        decoder_layers=1,
        decoder_heads=2,
        decoder_ffn=64,
        projector_channels=(16, 16),
    )
    return CRIS(config).eval()


def without_storage(name: str) -> CRIS:
    """One of `MODELS`, of which there are the shapes alone."""
    with torch.device("meta"):
        return CRIS(MODELS[name])


def photo(seed: int = 0, height: int = 120, width: int = 160) -> Photo:
    """Patches of many colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(colours, (width, height), interpolation=cv2.INTER_NEAREST)


def sensitive_model(tokenizer: Tokenizer) -> CRIS:
    """A small model whose masks depend on the photo: without it its signals fade layer by layer."""
    model = small_model(tokenizer)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            # The mean over all batches: what the layer sees, it then normalises.
            module.momentum = None
    box, length = letterbox_of(model.config), model.config.word_len
    frames = [box.frame(photo(seed)) for seed in range(100, 108)]
    tokens = [tokenizer.encode(text, length) for text in 2 * PHRASES]
    with torch.no_grad():
        model.train()(torch.tensor(np.stack(frames)), torch.tensor(np.stack(tokens)))
    return model.eval()


def write_bundle(folder: Path, model: CRIS, tokenizer: Tokenizer, threshold: float) -> Bundle:
    """A bundle of ONNX graphs in float32."""
    folder.mkdir()
    config = model.config
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    graphs = {}
    for name, source in split_graphs(model).items():
        export_onnx(source, folder / f"{name}.onnx", "float32")
        graphs[name] = dataclasses.asdict(source.spec(f"{name}.onnx"))
    ways = {"interpolation": "cubic", "border": "mean", "colour": "RGB"}
    numbers = {"size": config.input_size, "mean": config.mean, "std": config.std}
    fields = {
        "name": config.name,
        "image": numbers | ways,
        "text": {"tokenizer": "tokenizer.json", "word_len": config.word_len},
        "mask": {
            "threshold": threshold,
            "stride": 4,
            "interpolation": "cubic",
            "align_corners": True,
        },
        "target": {"name": "onnx"},
        "precision": "float32",
        "graphs": graphs,
    }
    return write_specification(folder, fields)

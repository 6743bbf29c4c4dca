"""Small models of both kinds to export."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from torch import nn

from cris_edge.tokenizer import Tokenizer
from tests.scenes import small_model
from training.model import CRIS

SAMPLES = Path(__file__).parent.parent / "samples" / "photos"
PHOTOS = (SAMPLES / "000000196393.jpg", SAMPLES / "000000000785.jpg")
PARTS = ("clip_resnet", "student")
OLDER = '{"format": "cris-edge-bundle", "files": {}}'
"""What is replaced as a bundle."""
NOTES = {
    "accuracy": json.dumps({"split": "val", "mIoU": 12.5}),
    "training_data": "made-up scenes",
    "licence": "CC0-1.0",
    "torch": "2.6.0",
}


def seasoned(model: CRIS) -> CRIS:
    """Batch norms with statistics of their own, and logits that differ from pixel to pixel."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            shape = module.running_mean.shape
            module.running_mean.copy_(0.1 * torch.randn(shape, generator=generator))
            module.running_var.copy_(1 + torch.rand(shape, generator=generator))
    with torch.no_grad():
        model.projector.kernel.weight.mul_(2)
        model.projector.kernel.bias[-1] = -0.6
    return model.eval()


def make_model(parts: str, tokenizer: Tokenizer) -> CRIS:
    model = small_model(tokenizer)
    if parts == "student":
        torch.manual_seed(0)
        student = dataclasses.replace(
            model.config,
            name="small_student",
            image_encoder="tf_efficientnet_lite0",
            separable=True,
            detail=True,
        )
        model = CRIS(student)
    return seasoned(model)

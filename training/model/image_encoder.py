"""Photo to features at strides 8, 16 and 32."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from training.model.blocks import ConstantGrid
from training.model.config import CRISConfig

HEAD_WIDTH = 64
"""Channels of an attention head in all of CLIP's towers."""
STRIDES = (8, 16, 32)
"""Of C3, C4 and C5."""

Features = tuple[Tensor, Tensor, Tensor]


def bicubic_weights(height: int, width: int, grid: int) -> Tensor:
    """What each cell of a square grid weighs where it is resized: (height * width, grid ** 2).

    Bicubic interpolation is linear in what it resizes. As a product with these numbers it is fast
    on GPUs, whose own kernel, and its gradient most of all, is made for large pictures.
    """
    cells = torch.eye(grid**2).unflatten(1, (1, grid, grid))
    resized = F.interpolate(cells, (height, width), mode="bicubic", align_corners=False)
    return resized.flatten(1).T.contiguous()


class DenseAttentionPool(nn.Module):
    """CLIP's attention pool turned dense: every position is query, key and value.

    The class token is left out. A residual path (`connect`) is added before the ReLU; it is new, so
    it starts at random. The weights keep CLIP's names and shapes.
    """

    def __init__(self, grid: int, side: int, inputs: int, outputs: int):
        super().__init__()
        self.heads = inputs // HEAD_WIDTH
        self.grid = grid
        self.resize = ConstantGrid(bicubic_weights, side, side, grid)
        # The first row is the class token's: unused here, kept so that weights keep their shape.
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, inputs) / inputs**0.5)
        self.q_proj = nn.Linear(inputs, inputs)
        self.k_proj = nn.Linear(inputs, inputs)
        self.v_proj = nn.Linear(inputs, inputs)
        self.c_proj = nn.Linear(inputs, outputs)
        self.connect = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )

    def position_codes(self, height: int, width: int) -> Tensor:
        """The positional embedding resized bicubically: (height * width, inputs)."""
        return self.resize(height, width, self.grid) @ self.positional_embedding[1:]

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w)."""
        batch, _, height, width = features.shape
        pixels = features.flatten(2).transpose(1, 2) + self.position_codes(height, width)

        def heads(projection: nn.Linear) -> Tensor:
            return projection(pixels).unflatten(2, (self.heads, HEAD_WIDTH)).transpose(1, 2)

        attended = F.scaled_dot_product_attention(
            heads(self.q_proj), heads(self.k_proj), heads(self.v_proj)
        )
        pooled = self.c_proj(attended.transpose(1, 2).flatten(2))
        pooled = pooled.transpose(1, 2).reshape(batch, -1, height, width)
        return F.relu(pooled + self.connect(features))


class CLIPImageEncoder(nn.Module):
    """CLIP's modified ResNet: C3, C4, and C5 from the dense attention pool."""

    def __init__(self, config: CRISConfig):
        super().__init__()
        width = config.vision_width
        self.channels = (8 * width, 16 * width, config.embed_dim)
        self.trunk = ModifiedResNet(
            list(config.vision_layers), config.embed_dim, width // 2, config.vision_grid * 32, width
        )
        self.trunk.attnpool = DenseAttentionPool(
            config.vision_grid, config.input_size // 32, 32 * width, config.embed_dim
        )

    @property
    def stages(self) -> list[nn.Module]:
        """What follows the stem, in order."""
        trunk = self.trunk
        return [trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4]

    def forward(self, image: Tensor) -> Features:
        """(B, 3, H, W) normalised RGB to features at strides 8, 16, 32."""
        trunk = self.trunk
        c3 = trunk.layer2(trunk.layer1(trunk.stem(image)))
        c4 = trunk.layer3(c3)
        return c3, c4, trunk.attnpool(trunk.layer4(c4))


class TimmImageEncoder(nn.Module):
    """A network of timm, cut before its classifier or after some of its stages of blocks."""

    def __init__(self, config: CRISConfig):
        super().__init__()
        network = timm.create_model(config.image_encoder, features_only=True)
        skip_pixels_first(network)
        strides = network.feature_info.reduction()
        if not set(STRIDES) <= set(strides):
            raise ValueError(
                f"{config.image_encoder}: expected features at strides {list(STRIDES)}, "
                f"got {strides}"
            )
        self.places = [strides.index(stride) for stride in STRIDES]
        channels = network.feature_info.channels()
        if config.image_blocks:
            network = FirstStages(network, config)
            channels[-1] = network.channels
        self.trunk = network
        self.channels = cast(
            "tuple[int, int, int]", tuple(channels[place] for place in self.places)
        )

    @property
    def stages(self) -> list[nn.Module]:
        """What follows the stem, in order, as timm's families name it."""
        if isinstance(blocks := getattr(self.trunk, "blocks", None), nn.Sequential):
            return list(blocks)
        named = self.trunk.named_children()
        return [part for name, part in named if name.startswith(("stages", "layer"))]

    def forward(self, image: Tensor) -> Features:
        """(B, 3, H, W) normalised RGB to features at strides 8, 16, 32."""
        features = self.trunk(image)
        c3, c4, c5 = (features[place] for place in self.places)
        return c3, c4, c5


def skip_pixels_first(network: nn.Module) -> None:
    """Let strided 1x1 convolutions of the photo skip pixels, then convolve without stride.

    The same sums. But the gradient of their weights, on CPUs in float32 and channels last, is wrong
    with a stride, and writes where it must not: oneDNN's buffer is made for eight channels or more.
    """
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d) or layer.in_channels != 3:
            continue
        if layer.kernel_size == (1, 1) and layer.stride != (1, 1):
            layer.register_forward_pre_hook(partial(_every, layer.stride))
            layer.stride = (1, 1)


def _every(stride: tuple[int, ...], layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0][:, :, :: stride[0], :: stride[1]]


class FirstStages(nn.Module):
    """Stem and first stages of a network of EfficientNet's kind; weights keep timm's names.

    timm gives features where a stride ends. Here the last stride may end earlier, after the last
    stage that is kept.
    """

    def __init__(self, network: Any, config: CRISConfig):
        super().__init__()
        name, stages = config.image_encoder, config.image_blocks
        if not isinstance(getattr(network, "blocks", None), nn.Sequential):
            raise ValueError(f"image_blocks: {name} has no stages of blocks; expected 0")
        *self.ends, last = (info["stage"] for info in network.feature_info.get_dicts())
        if not self.ends[-1] < stages <= last:
            raise ValueError(
                f"image_blocks: expected 0, or {self.ends[-1] + 1} to {last}, with which {name} "
                f"reaches its last stride, got {stages}"
            )
        self.ends.append(stages)
        self.conv_stem, self.bn1 = network.conv_stem, network.bn1
        self.blocks: nn.Sequential = network.blocks[:stages]
        convolutions = [layer for layer in self.blocks.modules() if isinstance(layer, nn.Conv2d)]
        self.channels = convolutions[-1].out_channels

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to the features at the end of every stride from 2 on."""
        stage_output, features = self.bn1(self.conv_stem(image)), []
        for number, stage in enumerate(self.blocks, 1):
            stage_output = stage(stage_output)
            if number in self.ends:
                features.append(stage_output)
        return features


def build_image_encoder(config: CRISConfig) -> CLIPImageEncoder | TimmImageEncoder:
    """The image encoder that the configuration names."""
    if config.image_encoder == "clip_resnet":
        return CLIPImageEncoder(config)
    return TimmImageEncoder(config)

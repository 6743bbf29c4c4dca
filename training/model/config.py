"""Every size of a CRIS model, in one place."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import timm

THRESHOLD = 0.35
"""Probability above which a pixel belongs to the mask, as the CRIS authors have it: that of every
checkpoint that does not say another."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class CRISConfig:
    """The sizes of a CRIS model. The defaults are the paper's ResNet-50 model at 416 px.

    A student is the same model with other parts: another image encoder, a smaller text encoder and
    vocabulary, separable convolutions, fewer channels.
    """

    name: str = "cris_r50"
    input_size: int = 416
    """Side of the square input in pixels, a multiple of 32."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    """Of the RGB channels, in units of [0, 1]."""

    image_encoder: str = "clip_resnet"
    """`clip_resnet`, or the name of a timm model whose features have strides 8, 16 and 32."""
    vision_layers: tuple[int, ...] = (3, 4, 6, 3)
    """CLIP ResNet only: blocks of each stage."""
    vision_width: int = 64
    """CLIP ResNet only: channels of the stem; the last stage has 32 times as many."""
    vision_grid: int = 7
    """CLIP ResNet only: side of the attention pool's positional embedding."""
    image_blocks: int = 0
    """timm only: stages of blocks that are kept; 0: all."""

    embed_dim: int = 1024
    """Channels of the sentence feature, and of C5 when the image encoder is CLIP's."""
    word_len: int = 17
    """Tokens of a phrase: 17 for RefCOCO and RefCOCO+, 22 for G-Ref."""
    vocab_size: int = 49408
    """CLIP's own. Any other number marks a student, whose tokenizer is made from its phrases and
    then fixes the number."""
    context_length: int = 77
    """Rows of the text encoder's positional embedding; at least `word_len`."""
    text_width: int = 512
    text_layers: int = 12

    neck_channels: tuple[int, int, int] = (256, 512, 1024)
    """Channels at strides 8, 16 and 32; the middle one is the decoder's width."""
    decoder_layers: int = 3
    decoder_heads: int = 8
    decoder_ffn: int = 2048
    dropout: float = 0.1
    projector_channels: tuple[int, int] = (512, 256)
    """Channels of the projector's features at strides 8 and 4."""

    separable: bool = False
    """3x3 convolutions of neck and projector are depthwise followed by pointwise."""
    detail: bool = False
    """The projector also sees C3, which the published model does not: finer outlines."""

    def __post_init__(self) -> None:
        """Refuse sizes that no model can have."""
        for name, (kind, count, least) in _KINDS.items():
            _check(name, getattr(self, name), kind, count, least)
        if self.input_size % 32:
            raise ValueError(f"input_size must be a positive multiple of 32, not {self.input_size}")
        # timm takes addresses too ("hf-hub:…"): a checkpoint's header must not make it fetch.
        if self.image_encoder != "clip_resnet" and not timm.is_model(self.image_encoder):
            raise ValueError(
                f"image_encoder {self.image_encoder!r} is neither clip_resnet nor a model of timm"
            )
        if self.image_blocks and self.image_encoder == "clip_resnet":
            raise ValueError(
                f"image_blocks must be 0, or with a model of timm a number of its stages, "
                f"not {self.image_blocks}"
            )
        if self.word_len > self.context_length:
            raise ValueError(
                f"word_len {self.word_len} is longer than context_length {self.context_length}"
            )
        if self.text_width % 64:
            raise ValueError(f"text_width must be a multiple of 64, not {self.text_width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")
        if self.decoder_width % (2 * self.decoder_heads) or self.decoder_width % 4:
            raise ValueError(
                f"the decoder's width {self.decoder_width} (neck_channels[1]) must be a multiple "
                f"of 4 and of twice its {self.decoder_heads} heads"
            )

    def differences(self, other: CRISConfig, but: Collection[str]) -> list[str]:
        """What another model's sizes are where these are not the same, but for some names."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        names = [name for name in mine if name not in but and mine[name] != theirs[name]]
        return [f"{name} is {theirs[name]} and not {mine[name]}" for name in names]

    @property
    def decoder_width(self) -> int:
        """Channels of the neck's result and of the decoder."""
        return self.neck_channels[1]

    def to_json(self) -> str:
        """The configuration as a JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CRISConfig:
        """Read a configuration; unknown names are refused, with those that are known.

        Raises:
            ValueError: these are no names with values, a name is unknown, or a size impossible.
        """
        if not isinstance(values, dict):
            raise ValueError(f"expected the model's sizes by their names, got {values!r}")
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ValueError(f"unknown sizes {unknown}; the model has {sorted(names)}")
        # JSON and YAML know lists only.
        as_tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**as_tuples)

    @classmethod
    def from_json(cls, text: str) -> CRISConfig:
        """Read what `to_json` wrote."""
        return cls.from_dict(json.loads(text))


_KINDS: dict[str, tuple[type, int | None, float]] = {
    "name": (str, None, 0),
    "input_size": (int, None, 32),
    "mean": (float, 3, 0),
    "std": (float, 3, 0),
    "image_encoder": (str, None, 0),
    "vision_layers": (int, 4, 1),
    "vision_width": (int, None, 1),
    "vision_grid": (int, None, 1),
    "image_blocks": (int, None, 0),
    "embed_dim": (int, None, 1),
    # Start, one token, end.
    "word_len": (int, None, 3),
    "vocab_size": (int, None, 1),
    "context_length": (int, None, 3),
    "text_width": (int, None, 64),
    "text_layers": (int, None, 1),
    "neck_channels": (int, 3, 1),
    "decoder_layers": (int, None, 1),
    "decoder_heads": (int, None, 1),
    "decoder_ffn": (int, None, 1),
    "dropout": (float, None, 0),
    "projector_channels": (int, 2, 1),
    "separable": (bool, None, 0),
    "detail": (bool, None, 0),
}
"""Of each size: the type, how many there are where it is several, the least it may be."""
_IN_WORDS = {int: "a whole number", float: "a number", str: "a name", bool: "true or false"}


def _check(name: str, value: Any, kind: type, count: int | None, least: float) -> None:
    """Refuse a size of another type, number or range."""
    kinds = (int, float) if kind is float else (kind,)
    several = value if isinstance(value, tuple) else (value,)
    fits = all(type(one) in kinds and (kind is str or one >= least) for one in several)
    if not fits or isinstance(value, tuple) != bool(count) or len(several) != (count or 1):
        wanted = _IN_WORDS[kind] if count is None else f"a list of {count}, each {_IN_WORDS[kind]}"
        bound = "" if kind in (str, bool) else f" from {least} up"
        raise ValueError(f"{name} must be {wanted}{bound}, not {value!r}")


R50 = CRISConfig()
R101 = dataclasses.replace(R50, name="cris_r101", vision_layers=(3, 4, 23, 3), embed_dim=512)
STUDENT_S = CRISConfig(
    name="cris_edge_s",
    input_size=256,
    # The encoder's weights expect [-1, 1].
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    image_encoder="tf_efficientnet_lite2",
    # The seventh stage is one block that widens what the neck narrows again: 0.7 M parameters.
    image_blocks=6,
    embed_dim=256,
    context_length=17,
    vocab_size=6144,
    text_width=192,
    text_layers=4,
    neck_channels=(96, 192, 256),
    decoder_layers=3,
    decoder_heads=4,
    decoder_ffn=512,
    dropout=0.0,
    projector_channels=(96, 64),
    separable=True,
    detail=True,
)
STUDENT_XS = dataclasses.replace(
    STUDENT_S,
    name="cris_edge_xs",
    image_encoder="tf_efficientnet_lite0",
    # A row of the vocabulary costs as much as it is wide, and phrases need some 6,000 of them.
    text_width=128,
    text_layers=2,
    embed_dim=128,
    # What is done to every pixel for every phrase.
    neck_channels=(48, 80, 96),
    decoder_layers=2,
    decoder_ffn=256,
    projector_channels=(48, 32),
)
STUDENT_M = dataclasses.replace(
    STUDENT_S,
    name="cris_edge_m",
    # The photo side of MobileCLIP2-S0 (arXiv 2508.20691): it has learnt from captions what things
    # are called, which ImageNet's classes do not teach. It was trained at 256 px on values in
    # [0, 1] as they are.
    image_encoder="fastvit_mci0",
    image_blocks=0,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    # Of MobileCLIP2's embedding.
    embed_dim=512,
    # Its text side stays behind: 63 M parameters, 25 M of them for a vocabulary of which phrases
    # need an eighth.
    text_width=256,
    text_layers=6,
    # As wide as the photo's features come.
    neck_channels=(128, 256, 512),
    decoder_heads=8,
    decoder_ffn=1024,
    projector_channels=(128, 64),
)
STUDENTS = (STUDENT_XS, STUDENT_S, STUDENT_M)
"""From small to large."""
MODELS = {config.name: config for config in (R50, R101, *STUDENTS)}

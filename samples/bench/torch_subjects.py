"""What the runtime is compared with: CRIS the plain way, and CLIPSeg, both in torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cris_edge.photo import Photo
from samples.bench.subjects import milliseconds
from samples.reference import PlainCRIS
from training.data.vocabulary import clip_merges
from training.model import CRIS
from training.model.config import R50, THRESHOLD
from training.predictor import letterbox_of


class _Pairwise:
    """A model that keeps nothing: every pair of photo and phrase costs a whole forward."""

    name: str
    input_size: int

    def prepare(self, frame: Photo) -> Any:
        """What the model takes of a photo."""
        raise NotImplementedError

    def logits(self, image: Any, phrase: str) -> Tensor:
        """What the model gives for what was prepared."""
        raise NotImplementedError

    def restore(self, logits: Tensor, frame: Photo) -> object:
        """The mask at the photo's size."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Sizes and torch's version."""
        return {
            "model": self.name,
            "precision": "float32",
            "computed": "float32",
            "input_size": self.input_size,
            "engine_version": torch.__version__,
            "bundle_bytes": None,
        }

    def mask(self, frame: Photo, phrase: str) -> object:
        """From the frame to the mask."""
        return self.restore(self.logits(self.prepare(frame), phrase), frame)

    def predict(self, frame: Photo, phrases: list[str]) -> object:
        """One pair after the other."""
        return [self.mask(frame, phrase) for phrase in phrases]

    def keep(self, frame: Photo) -> object:
        """The photo itself."""
        return frame

    def ask(self, kept: Any, phrase: str) -> object:
        """The whole again."""
        return self.mask(kept, phrase)

    def stream(self, frames: Iterable[Photo], phrase: str) -> object:
        """There is no other way than one by one."""
        return None

    def stages(self, frame: Photo, phrase: str) -> dict[str, float | None]:
        """The whole model is one stage, `pair`."""
        image = self.prepare(frame)
        logits = self.logits(image, phrase)
        return {
            "prepare": milliseconds(lambda: self.prepare(frame)),
            "photo": None,
            "phrase": None,
            "pair": milliseconds(lambda: self.logits(image, phrase)),
            "back": milliseconds(lambda: self.restore(logits, frame)),
        }


class PlainSubject(_Pairwise):
    """CRIS R50 at 416 px in float32, as the authors' code evaluates it."""

    name = R50.name
    input_size = R50.input_size

    def __init__(self, threads: int):
        from cris_edge.tokenizer import build

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.model = PlainCRIS(CRIS(R50)).eval()
        self.letterbox, self.tokenizer = letterbox_of(R50), build(clip_merges())

    def prepare(self, frame: Photo) -> Photo:
        """Letterboxed: (416, 416, 3) uint8 RGB."""
        return self.letterbox.frame(frame)

    @torch.inference_mode()
    def logits(self, image: Photo, phrase: str) -> Tensor:
        """(1, 1, 104, 104) of a letterboxed photo."""
        tokens = torch.from_numpy(self.tokenizer.encode(phrase, R50.word_len))[None]
        return self.model(torch.from_numpy(image)[None], tokens)

    @torch.inference_mode()
    def restore(self, logits: Tensor, frame: Photo) -> object:
        """The authors' way: to the input's size by torch, to the photo's by OpenCV."""
        height, width = frame.shape[:2]
        sides = (R50.input_size, R50.input_size)
        full = F.interpolate(logits.sigmoid(), sides, mode="bicubic", align_corners=True)
        inverse = self.letterbox.inverse(height, width)
        square = full[0, 0].numpy()
        warped = cv2.warpAffine(square, inverse, (width, height), flags=cv2.INTER_CUBIC)
        return np.asarray(warped) > THRESHOLD


class ClipSegSubject(_Pairwise):
    """CLIPSeg with the sizes of its published checkpoint, for scale: it knows no instances."""

    name = "clipseg"
    input_size = 352
    words = 17
    """Tokens of a phrase, as many as CRIS reads; its own tokenizer would have to be fetched."""

    def __init__(self, threads: int):
        from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        # The published checkpoints have patches of 16 pixels, the default configuration 32.
        config = CLIPSegConfig(vision_config={"patch_size": 16})
        self.model = CLIPSegForImageSegmentation(config).eval()

    def prepare(self, frame: Photo) -> Tensor:
        """(1, 3, 352, 352), about normalised; the photo is stretched, as its own code does."""
        square = cv2.resize(frame, (self.input_size, self.input_size))[:, :, ::-1]
        image = np.ascontiguousarray(square.transpose(2, 0, 1), np.float32) / 127.5 - 1
        return torch.from_numpy(image)[None]

    @torch.inference_mode()
    def logits(self, image: Tensor, phrase: str) -> Tensor:
        """(1, 352, 352); any ids do for timing, the last is the end token's."""
        letters = [300 + ord(letter) for letter in phrase[: self.words - 2]]
        ids = torch.tensor([[49406, *letters, 49407]])
        found = self.model(input_ids=ids, pixel_values=image).logits
        return found.reshape(1, self.input_size, self.input_size)

    def restore(self, logits: Tensor, frame: Photo) -> object:
        """Stretched back to the photo."""
        height, width = frame.shape[:2]
        return cv2.resize(logits[0].sigmoid().numpy(), (width, height)) > THRESHOLD

"""A model in torch that computes as its INT8 graphs will, for training and for judging.

Rounded is what `quantize.calibration` quantises for OpenVINO and ONNX Runtime, layer by layer, but
for the layers that `quantize.calibrate` leaves in float at first. NNCF has such a training for
torch, which does not take these models: it hooks one `forward` of a copy, while photo, phrase and
pair are called apart and share their weights, and does not follow weights taken in slices.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantize.graphs import HEAD
from quantize.grids import HALF, WHOLE, range_of, round_activation, round_weight
from training.distributed import world
from training.model import CRIS
from training.model.decoder import attend, projections

MEMORY = 100
"""Batches that a range is the mean of, roughly, for weights move while it is measured."""
PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
LAYERS = (F.conv2d, F.linear, F.embedding, F.scaled_dot_product_attention, *PRODUCTS)
"""What is rounded: the first two arguments. Of attention that is the scores' product; its weights
and the product with them stay in float."""
PARTS = (
    "image_encoder.forward",
    "text_encoder.forward",
    "neck.look",
    "projector.look",
    "decoder.read",
    "neck.read",
    "projector.read",
    "neck.forward",
    "decoder.forward",
    "projector.forward",
)
"""What `CRIS.photo`, `phrase`, `pair` and `stages` are all made of; the mask head comes last."""


class Rounding(nn.Module):
    """Rounds a model in place, from now on; its weights and their names stay.

    Copies of the model, such as its moving average, round by the same ranges. A range is measured
    wherever gradients are wanted, so in training and not where the model is judged, and `settle`
    takes it over. There are none before `begin`. The state is what a run needs to go on.
    """

    ranges: Tensor
    """(R, 2): the least and the greatest value of each tensor that is rounded."""
    batches: Tensor
    """How many have been measured."""

    def __init__(self, model: CRIS):
        """Round a model, which is run once to find what there is to round."""
        super().__init__()
        self._numbers: dict[tuple[int, int, int], int] = {}
        """Ranges by part, layer and which of its two tensors."""
        self._looking, self._measuring, self._begun = True, False, False
        self._before_head = sys.maxsize
        self._found: list[list[Tensor]] = []
        for module in model.text_encoder.modules():
            if isinstance(module, nn.MultiheadAttention):
                # Nothing that torch's own calls can be seen.
                setattr(module, "forward", partial(_attention, module))  # noqa: B010
        for part, path in enumerate(PARTS):
            owner, _, name = path.partition(".")
            module = getattr(model, owner)
            setattr(module, name, partial(self._run, part, module, getattr(module, name)))
        self._look(model)
        device = next(model.parameters()).device
        self.register_buffer("ranges", torch.zeros(len(self._numbers), 2, device=device))
        self.register_buffer("batches", torch.zeros((), device=device))

    def __deepcopy__(self, memo: object) -> Rounding:
        """None is made: copies of a model share it."""
        return self

    def _look(self, model: CRIS) -> None:
        """Number what is rounded, all but the mask head's last layers."""
        config, training = model.config, model.training
        device = next(model.parameters()).device
        image = torch.zeros(1, 3, config.input_size, config.input_size, device=device)
        tokens = torch.zeros(1, config.word_len, dtype=torch.int64, device=device)
        tokens[:, :2] = torch.tensor([config.vocab_size - 2, config.vocab_size - 1])
        with torch.no_grad():
            # Batch norms would take their statistics from this.
            model.eval().stages(image, tokens)
        model.train(training)
        last = len(PARTS) - 1
        layers = [layer for part, layer, _ in self._numbers if part == last]
        self._before_head = max(layers) + 1 - HEAD
        usual = [key for key in self._numbers if key[:2] < (last, self._before_head)]
        self._numbers = {key: number for number, key in enumerate(usual)}
        self._found = [[] for _ in usual]
        self._looking = False

    def _run(self, part: int, owner: nn.Module, run: Callable[..., Any], *inputs: Tensor) -> Any:
        """What a part gives, computed in rounded numbers."""
        layers = self._before_head if part == len(PARTS) - 1 else sys.maxsize
        with _Rounded(owner, partial(self._round, part), layers):
            return run(*inputs)

    def _round(self, part: int, layer: int, place: int, values: Tensor, symmetric: bool) -> Tensor:
        """An activation by its range."""
        if self._looking:
            self._numbers[part, layer, place] = len(self._numbers)
            return values
        number = self._numbers[part, layer, place]
        if self._measuring or torch.is_grad_enabled():
            self._found[number].append(range_of(values))
        if self._measuring:
            return values
        low, high = self.ranges[number]
        return round_activation(values, low, high, symmetric)

    def begin(self, run: Callable[[], object]) -> None:
        """Measure ranges to start with, unless there are some or a state has brought them.

        Args:
            run: runs the model on a batch.
        """
        if self._begun:
            return
        # Asked once, for a GPU would have to be waited for each time.
        self._begun = True
        if self.batches == 0:
            self._measuring = True
            with torch.no_grad():
                run()
            self._measuring = False
            self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Take over what a batch has shown, alike in all processes."""
        found = torch.stack([torch.stack(ranges).mean(0) for ranges in self._found])
        for ranges in self._found:
            ranges.clear()
        if world()[1] > 1:
            dist.all_reduce(found)
            found /= world()[1]
        self.batches += 1
        self.ranges.lerp_(found, 1 / self.batches.clamp(max=MEMORY))


class _Rounded(TorchFunctionMode):
    """Rounds what goes into layers: weights by themselves, activations as it is told to."""

    def __init__(self, owner: nn.Module, round_it: Callable[..., Tensor], layers: int):
        """Round the first so many layers that are computed.

        Args:
            owner: of the weights and constants.
            round_it: takes the layer's number, which of its two tensors, the tensor, and whether it
                is multiplied with another activation.
            layers: at most.
        """
        super().__init__()
        self._round_it, self._layers, self._layer = round_it, layers, 0
        # What is made of weights and constants alone, such as a slice, is one: kept, so that no
        # other tensor gets its id.
        self._constants = {id(buffer): buffer for buffer in owner.buffers()}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch; inside here no function comes by."""
        kwargs = kwargs or {}
        constant = all(map(self._is_constant, _tensors((*args, *kwargs.values()))))
        if func in LAYERS and not constant:
            if self._layer < self._layers:
                args = (*self._operands(func, *args[:2]), *args[2:])
            self._layer += 1
        result = func(*args, **kwargs)
        if constant and isinstance(result, Tensor):
            self._constants[id(result)] = result
        return result

    def _is_constant(self, tensor: Tensor) -> bool:
        return isinstance(tensor, nn.Parameter) or id(tensor) in self._constants

    def _operands(self, func: Callable[..., Any], left: Tensor, right: Tensor) -> list[Tensor]:
        """The two tensors of a layer, rounded."""
        if func is F.embedding:
            return [left, round_weight(right, 0, WHOLE)]
        weights = [self._is_constant(left), self._is_constant(right)]
        return [
            self._weight(func, tensor)
            if weight
            else self._round_it(self._layer, place, tensor, not any(weights))
            for place, (tensor, weight) in enumerate(zip((left, right), weights, strict=True))
        ]

    def _weight(self, func: Callable[..., Any], weight: Tensor) -> Tensor:
        depthwise = func is F.conv2d and weight.shape[1] == 1
        return round_weight(weight, -1 if func in PRODUCTS else 0, WHOLE if depthwise else HALF)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _attention(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    need_weights: bool = False,
    attn_mask: Tensor | None = None,
) -> tuple[Tensor, None]:
    """What the `forward` of an attention computes, batch first, without its weights."""
    del need_weights
    of_queries, of_keys, of_values = projections(attention)
    queries, keys = F.linear(query, *of_queries), F.linear(key, *of_keys)
    return attend(attention, queries, keys, F.linear(value, *of_values), attn_mask), None

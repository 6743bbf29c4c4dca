"""Which phrases of a photo go into one batch together."""

from collections.abc import Sequence

import numpy as np

from training.data.mirror import mirror, speaks_of_place
from training.data.samples import Sample


def fits_mirrored(sample: Sample) -> bool:
    """Whether the phrase can be reworded for the mirrored photo."""
    return mirror(sample.text) is not None


def survives_crop(sample: Sample) -> bool:
    """Whether a crop that keeps every labelled instance keeps the phrase true.

    A place that tells an instance from rivals is an order among them, which a crop keeps; the
    place of a lone object in the frame is not kept.
    """
    if not speaks_of_place(sample.text):
        return True
    same = [i for i in sample.photo.instances if i.category == sample.instance.category]
    return len(same) > 1


def choose(
    samples: Sequence[Sample], count: int, rng: np.random.Generator, written: float
) -> list[Sample]:
    """Pick `count` phrases of one photo that must be told apart from each other.

    The first instance is drawn with rivals of its class preferred. Rivals and instances of other
    classes then take turns, with the rivals told by the same kind of phrase (left and right,
    big and small) where there is one, so that neither the noun nor the place alone gives the
    answer. Instances come twice, by other phrases, only when there are fewer than `count`.

    Args:
        samples: at least one, all of the same photo.
        written: how often a written phrase is taken where an instance has both sorts.
    """
    pools: dict[int, list[Sample]] = {}
    for sample in samples:
        pools.setdefault(sample.instance.id, []).append(sample)
    order = _order(pools, rng)
    chosen: list[Sample] = []
    used: set[tuple[int, str]] = set()
    kinds: dict[str, str] = {}
    for slot in range(count):
        pool = pools[order[slot % len(order)]]
        fresh = [s for s in pool if (s.instance.id, s.text) not in used] or pool
        sample = _draw(fresh, rng, written, kinds.get(pool[0].instance.category))
        kinds.setdefault(sample.instance.category, sample.kind)
        used.add((sample.instance.id, sample.text))
        chosen.append(sample)
    return chosen


def _order(pools: dict[int, list[Sample]], rng: np.random.Generator) -> list[int]:
    """Instance ids: one, then its rivals and the others in turns."""
    ids = [int(key) for key in rng.permutation(list(pools))]
    category = {key: pools[key][0].instance.category for key in ids}
    classes = list(category.values())
    weights = np.array([3.0 if classes.count(category[key]) > 1 else 1.0 for key in ids])
    first = int(rng.choice(ids, p=weights / weights.sum()))
    rivals = [key for key in ids if key != first and category[key] == category[first]]
    others = [key for key in ids if category[key] != category[first]]
    order = [first]
    while rivals or others:
        order += rivals[:1] + others[:1]
        rivals, others = rivals[1:], others[1:]
    return order


def _draw(
    pool: Sequence[Sample], rng: np.random.Generator, written: float, kind: str | None
) -> Sample:
    """A phrase of one instance: the wished kind if it is there, else each kind equally often."""
    by_kind: dict[str, list[Sample]] = {}
    for sample in pool:
        by_kind.setdefault(sample.kind, []).append(sample)
    if kind in by_kind and kind != "written":
        candidates = by_kind[kind]
    elif "written" in by_kind and (len(by_kind) == 1 or rng.random() < written):
        candidates = by_kind["written"]
    else:
        candidates = by_kind[str(rng.choice([name for name in by_kind if name != "written"]))]
    return candidates[int(rng.integers(len(candidates)))]

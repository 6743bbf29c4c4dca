"""Every validation sample as a model hears it: by its own phrase, and by others put to it.

The other phrases keep or change one thing, so that `training.probes` can tell what the model minds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cris_edge import Segmenter
from training.baselines import Ellipse, best_ellipse, shuffled_phrases
from training.data.samples import Sample
from training.data.several import SEVERAL, all_of_each
from training.evaluation import Record, evaluate_pairs
from training.groups import group_names
from training.selection import FolderData, select
from training.wording import Phrasing, category_word, other_side, side_alone, wrong_class

FULL, CATEGORY, SWAPPED = "full expression", "category word alone", "left and right swapped"
SIDE, WRONG, FOREIGN = "side alone", "wrong class, right side", "of another photo"
PHRASINGS: dict[str, Phrasing] = {
    CATEGORY: category_word,
    SWAPPED: other_side,
    SIDE: side_alone,
    WRONG: wrong_class,
}
"""What else is said of a sample that has a rival."""


@dataclass(frozen=True, eq=False)
class Heard:
    """A sample, and what was predicted for each phrasing that was tried on it."""

    sample: Sample
    records: Mapping[str, Record]

    @cached_property
    def groups(self) -> frozenset[str]:
        """As `training.evaluate` groups samples."""
        return frozenset(group_names(self.sample, self.records[FULL].truth_share))


@dataclass(frozen=True, eq=False)
class Hearing:
    """What the probes judge."""

    written: Sequence[Heard]
    derived: Sequence[Heard]
    several: Sequence[Heard]
    """Of all things of a category, by the plural and by the category alone."""
    learned: Ellipse | None
    """The ellipse that is best on the training split; None without written expressions."""


def listen(segmenter: Segmenter, data: FolderData, progress: bool = True) -> Hearing:
    """Predict all that the probes compare, in one pass over the validation photos.

    Raises:
        DataError: the data are missing or not as they should be, or all of one photo.
    """
    selections = {selection.name: selection for selection in select(data)}
    samples = {name: selection.samples for name, selection in selections.items()}
    photos = dict.fromkeys(sample.photo for group in samples.values() for sample in group)
    samples[SEVERAL] = [sample for photo in photos for sample in all_of_each(photo)]
    asked = {name: [_phrases(sample) for sample in group] for name, group in samples.items()}
    written = selections.get("written")
    if written:
        texts = shuffled_phrases(written.samples)
        for phrases, text in zip(asked["written"], texts, strict=True):
            phrases[FOREIGN] = text
    pairs = [
        (sample, phrase)
        for name, group in samples.items()
        for sample, phrases in zip(group, asked[name], strict=True)
        for phrase in phrases.values()
    ]
    # Before hours of predicting, since it can be refused.
    training = data.training(written) if written else []
    learned = best_ellipse(training) if training else None
    records = iter(evaluate_pairs(segmenter, pairs, progress))
    heard = {
        name: [
            Heard(sample, {phrasing: next(records) for phrasing in phrases})
            for sample, phrases in zip(group, asked[name], strict=True)
        ]
        for name, group in samples.items()
    }
    return Hearing(heard.get("written", ()), heard.get("derived", ()), heard[SEVERAL], learned)


def _phrases(sample: Sample) -> dict[str, str]:
    found = {FULL: sample.text}
    if sample.kind == SEVERAL:
        return found | {CATEGORY: category_word(sample)}
    # The mask's share of the photo, which is not measured yet, has no say in rivals.
    if "rival present" in group_names(sample, 0.0):
        said = {name: phrasing(sample) for name, phrasing in PHRASINGS.items()}
        found |= {name: phrase for name, phrase in said.items() if phrase}
    return found

"""`python -m training.data.show`: a sheet of photos with masks and the phrases that mean them.

What a data folder holds, what a prepared set holds, or what training sees of the made-up world and
of photos with cut-outs pasted on: look at it before you train.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cris_edge.files import write_image
from training.arguments import at_least, documented, image_to_write, refusals
from training.data.pasted import Paster
from training.data.prepared import DESCRIPTION, open_references
from training.data.references import samples_of
from training.data.samples import Sample, load_photos, load_samples
from training.data.scene_phrases import scene_samples
from training.errors import DataError

TILE = 400
LINE = 17
LINES = 14
_COLOURS = ((66, 135, 245), (80, 200, 80), (220, 120, 50), (200, 80, 200), (40, 200, 220),
            (120, 120, 240), (180, 180, 60), (150, 90, 160))  # fmt: skip

Picture = NDArray[np.uint8]


def tile(samples: Sequence[Sample]) -> Picture:
    """One photo with its masks tinted and its phrases below, in the colour of their masks.

    Args:
        samples: of one photo; phrases beyond `LINES` are left out.

    Returns:
        (TILE + LINES * LINE, TILE, 3) uint8 BGR.
    """
    photo, shown = samples[0].photo, samples[:LINES]
    picture = photo.read()
    # By what is meant: things that were joined have no number of their own.
    masks = [sample.instance.mask() for sample in shown]
    keys = [mask.tobytes() for mask in masks]
    colours = {key: _COLOURS[i % len(_COLOURS)] for i, key in enumerate(dict.fromkeys(keys))}
    for key, mask in dict(zip(keys, masks, strict=True)).items():
        _tint(picture, mask, colours[key])
    scale = TILE / max(photo.width, photo.height)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    canvas = np.full((TILE + LINES * LINE, TILE, 3), 255, np.uint8)
    canvas[: size[1], : size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    for row, (sample, key) in enumerate(zip(shown, keys, strict=True)):
        where = (4, size[1] + row * LINE + 14)
        text = f"{sample.text}  ({sample.kind})"
        dark = tuple(int(0.7 * value) for value in colours[key])
        cv2.putText(canvas, text, where, cv2.FONT_HERSHEY_SIMPLEX, 0.45, dark, 1, cv2.LINE_AA)
    return canvas


def _tint(picture: Picture, mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    picture[mask] = (0.6 * picture[mask] + 0.4 * np.array(colour)).astype(np.uint8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, colour, 2)


def sheet(samples: Sequence[Sample], columns: int, rows: int, seed: int) -> Picture:
    """Tiles of photos drawn at random, phrases in random order; (H, W, 3) uint8 BGR."""
    if not samples:
        raise DataError("there is no sample to show")
    rng = np.random.default_rng(seed)
    groups: dict[Path, list[Sample]] = {}
    for index in rng.permutation(len(samples)):
        groups.setdefault(samples[index].photo.path, []).append(samples[index])
    paths = sorted(groups)
    chosen = [paths[i] for i in rng.permutation(len(paths))[: columns * rows]]
    tiles = [tile(groups[path]) for path in chosen]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    lines = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    return np.asarray(np.vstack(lines), np.uint8)


def _load(options: argparse.Namespace) -> list[Sample]:
    if options.pasted:
        return _pasted(options)
    if options.scenes:
        return scene_samples(options.columns * options.rows, phrases_each=LINES)
    if (options.data / DESCRIPTION).is_file():
        references = open_references(options.data).split(options.split)
        return samples_of(references, options.split, "all")
    return load_samples(options.data, options.split, options.which, seed=options.seed)


def _pasted(options: argparse.Namespace) -> list[Sample]:
    """Samples of some of a data folder's photos, with things pasted on them."""
    if options.scenes or (options.data / DESCRIPTION).is_file():
        raise DataError("--pasted wants a data folder of labelled photos (docs/data.md)")
    photos = load_photos(options.data, options.split)
    paster = Paster(photos)
    samples: list[Sample] = []
    for number in np.random.default_rng(options.seed).permutation(len(photos)):
        rng = np.random.default_rng((options.seed, number))
        samples += paster.samples(photos[number], rng)
        if len({sample.photo for sample in samples}) == options.columns * options.rows:
            break
    return samples


def run(options: argparse.Namespace) -> None:
    """Draw and write the sheet."""
    samples = _load(options)
    write_image(options.output, sheet(samples, options.columns, options.rows, options.seed))
    print(f"{options.output}: of {len(samples)} samples")


EXAMPLES = """examples:
  python -m training.data.show --data data --which written -o sheet.png
  python -m training.data.show --data data --split train --pasted --columns 3 -o pasted.png
  python -m training.data.show --scenes
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 2 after a line on stderr."""
    parser = documented("training.data.show", __doc__, EXAMPLES)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="a data folder, or one that training.prepare wrote")
    what.add_argument("--scenes", action="store_true", help="the made-up world instead")
    parser.add_argument("--split", default="val", help="default: %(default)s")
    parser.add_argument(
        "--which", choices=("derived", "written", "both"), default="derived",
        help="phrases of a data folder; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--pasted", action="store_true", help="with cut-outs of a data folder's photos pasted on"
    )
    parser.add_argument("--columns", type=at_least(1), default=4)
    parser.add_argument("--rows", type=at_least(1), default=2)
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("-o", "--output", type=image_to_write, default=Path("sheet.png"))
    options = parser.parse_args(arguments)
    return refusals(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

"""`python -m training.convert best.pth --word-len 17 --out OUT`: take over the authors' weights.

A checkpoint of the CRIS authors' code becomes one of ours (.safetensors), which `training.evaluate`
and `export.build` read. Theirs is a pickle: tensors and plain containers are taken from it, nothing
in it is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cris_edge.bundle import sha256
from cris_edge.tokenizer import Tokenizer, build
from training import checkpoint
from training.arguments import at_least, documented, file_to_write, refusals
from training.data.vocabulary import clip_merges
from training.errors import CheckpointError
from training.model import CRIS
from training.model.cost import parameters
from training.model.official import read_official

SUFFIX = ".safetensors"
SHORTEST = 3
"""Ids of a phrase of one token: start, the token, end."""


def convert(source: Path, out: Path, *, word_len: int, decoder_heads: int = 8) -> CRIS:
    """Write a checkpoint of the authors' code as one of ours, with CLIP's whole vocabulary.

    Args:
        source: what the authors' code saved.
        out: ends in `.safetensors`; replaced if it is there, and only by a whole file.
        word_len: ids of a phrase that the model was trained with; the shapes do not tell.
        decoder_heads: heads of the decoder's attentions; the shapes do not tell.

    Returns:
        The model, in evaluation mode, on the CPU; its input is 416 px, as published.

    Raises:
        CheckpointError: the source is not such a checkpoint, or of another vocabulary than
            CLIP's; or `out` has another ending. Nothing is written.
        OSError: `out` cannot be written.
    """
    if out.suffix != SUFFIX:
        raise CheckpointError(f"{out}: expected a name that ends in {SUFFIX}")
    model, tokenizer = load_official(source, word_len=word_len, decoder_heads=decoder_heads)
    checkpoint.save(out, model, tokenizer, _origin(source))
    return model


def load_official(source: Path, *, word_len: int, decoder_heads: int = 8) -> tuple[CRIS, Tokenizer]:
    """Read a checkpoint of the authors' code, with the vocabulary of its phrases, which is CLIP's.

    Args:
        source, word_len, decoder_heads: as for `convert`.

    Returns:
        The model as from `convert`, and CLIP's tokenizer.

    Raises:
        CheckpointError: the source is not such a checkpoint, or of another vocabulary.
    """
    model = CRIS.from_official(
        read_official(source), word_len=word_len, decoder_heads=decoder_heads
    )
    tokenizer = build(clip_merges())
    if model.config.vocab_size != tokenizer.vocab_size:
        raise CheckpointError(
            f"{source}: expected CLIP's {tokenizer.vocab_size} token embeddings, "
            f"found {model.config.vocab_size}: its phrases cannot be told from their ids"
        )
    return model, tokenizer


def _origin(source: Path) -> dict[str, str]:
    """Where the weights come from, for the checkpoint's header."""
    return {
        "source": f"{source.name}, a checkpoint of the CRIS authors' code",
        "source_sha256": sha256(source),
        "torch": torch.__version__,
    }


EXAMPLE = """example:
  python -m training.convert best_model.pth --word-len 17 --out cris_r50.safetensors
  python -m training.evaluate cris_r50.safetensors --data data

Give the word_len of the authors' config: 17 for RefCOCO and RefCOCO+, 22 for G-Ref. All other
sizes are read from the tensors, except the input's, which is 416 px as published.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = documented("training.convert", __doc__, EXAMPLE)
    add = arguments.add_argument
    add("source", type=Path, help="the authors' best_model.pth or last_model.pth")
    add(
        "--out", type=file_to_write, required=True, help="the checkpoint to write, NAME.safetensors"
    )
    add(
        "--word-len",
        type=at_least(SHORTEST),
        required=True,
        help="ids of a phrase, start and end included",
    )
    add(
        "--decoder-heads",
        type=at_least(1),
        default=8,
        help="heads of the decoder's attentions, %(default)s as published",
    )
    return arguments


def run(options: argparse.Namespace) -> None:
    """Convert, and print what the model is."""
    model = convert(
        options.source,
        options.out,
        word_len=options.word_len,
        decoder_heads=options.decoder_heads,
    )
    config, millions = model.config, parameters(model) / 1e6
    print(f"{config.name}: {millions:.2f} M parameters, word_len {config.word_len}, {options.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; one line on stderr and 2 where something is refused."""
    options = parser().parse_args(argv)
    return refusals(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

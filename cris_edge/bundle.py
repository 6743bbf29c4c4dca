"""A bundle: everything the runtime needs to run one model, in a folder or one zip file.

`bundle.json` describes the rest; docs/bundle.md tells its fields. A bundle that does not describe
itself, or whose files are not those it describes, is refused with the reason.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from cris_edge.errors import BundleError
from cris_edge.fields import Fields
from cris_edge.files import whole_file
from cris_edge.letterbox import Letterbox

FORMAT, VERSION = "cris-edge-bundle", 2
SPECIFICATION = "bundle.json"
GRAPHS = ("photo", "phrase", "pair")
PRECISIONS = ("float32", "float16", "weights8", "fp16", "int8")
FOR_TENSORRT = "jetson"
"""The target whose graphs TensorRT runs, on a Jetson or not."""
TARGETS = ("onnx", "openvino", FOR_TENSORRT)
PHRASES = "phrases"
"""The axis that is as long as there are phrases."""
MAX_PHRASES = 8
"""Phrases of a photo that run in one batch: more gain nothing and take memory."""
DTYPES = ("float32", "int64", "uint8")
MAX_BYTES = 4 * 2**30
"""Of all files of a bundle, unpacked: more than any model here, less than a disk."""
NOT_THE_FILES = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.EMFILE, errno.ENFILE,
)  # fmt: skip
"""What a sound zip file meets too: full disks, and folders that nobody may write in."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype and shape of a graph's input or output."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """Static but for a first axis `PHRASES`."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of that shape is one of these."""
        return len(shape) == len(self.shape) and all(
            wanted in (found, PHRASES) for wanted, found in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class GraphSpec:
    """A graph's main file within the bundle, and what goes in and out."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle; every field comes from `bundle.json`."""

    folder: Path
    """Where the files are; of a zip file, a temporary folder that lives as long as this object."""
    name: str
    letterbox: Letterbox
    tokenizer: str
    """The tokenizer's file."""
    word_len: int
    threshold: float
    precision: str
    """`float32`; `float16`: weights stored in half precision, `weights8`: in 8 bits, both computed
    in single; `fp16`: computed in half; `int8`: layers quantised after training, `about` tells
    which stay in float."""
    target: str
    """What its graphs were made for, one of `TARGETS`."""
    graphs: Mapping[str, GraphSpec]
    """`photo`, `phrase` and `pair`."""
    about: Mapping[str, Any]
    """The whole of `bundle.json`: licence, training data, accuracy, versions and the rest."""

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open and verify a bundle.

        Args:
            path: a folder with a `bundle.json`, or a zip file of one.

        Raises:
            BundleError: it is missing, damaged, altered, or does not describe itself.
        """
        path = Path(path)
        try:
            return cls._open(path)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from error

    @classmethod
    def _open(cls, path: Path) -> Bundle:
        if path.is_dir():
            return _read(path, path)
        if not path.exists():
            raise BundleError(f"{path}: no such bundle; expected a folder or a zip file")
        folder = Path(tempfile.mkdtemp(prefix="cris-edge-"))
        try:
            _unpack(path, folder)
            bundle = _read(folder, path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(bundle, shutil.rmtree, folder, ignore_errors=True)
        return bundle

    def path(self, name: str) -> Path:
        """Where a file of the bundle is."""
        return self.folder / name

    @property
    def size(self) -> int:
        """Bytes of all files that it lists."""
        return sum((self.folder / name).stat().st_size for name in self.about["files"])

    @property
    def suffixes(self) -> set[str]:
        """Of the graphs' main files, by which engines know what they read."""
        return {PurePath(graph.file).suffix for graph in self.graphs.values()}


def write_specification(folder: Path, fields: Mapping[str, Any]) -> Bundle:
    """Complete a folder of files to a bundle: write `bundle.json` and verify the whole.

    Args:
        folder: holds all files but `bundle.json`.
        fields: of `bundle.json`, without `format`, `version` and `files`.

    Raises:
        BundleError: the fields do not describe a bundle.
    """
    about = {"format": FORMAT, "version": VERSION} | dict(fields)
    about["files"] = {name: sha256(folder / name) for name in other_files(folder, ())}
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    (folder / SPECIFICATION).write_text(text, encoding="utf-8")
    return _read(folder, folder)


def write_zip(bundle: Bundle, path: str | Path) -> None:
    """Write a bundle as one zip file, whole or not at all."""
    deflated = zipfile.ZIP_DEFLATED
    # A board without a clock writes files of 1970, which zip files cannot say.
    with (
        whole_file(path) as temporary,
        zipfile.ZipFile(temporary, "w", deflated, strict_timestamps=False) as archive,
    ):
        for name in (SPECIFICATION, *bundle.about["files"]):
            archive.write(bundle.path(name), name)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _unpack(path: Path, folder: Path) -> None:
    """Unpack a zip file whose names stay within the folder and whose size is bounded."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MAX_BYTES:
                raise BundleError(f"{path}: unpacks to more than {MAX_BYTES} bytes")
            for member in members:
                _inside(member.filename)
                # zipfile stops at the size it announced, so the sum above holds.
                archive.extract(member, folder)
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno in NOT_THE_FILES:
            raise BundleError(
                f"{path}: cannot be read, or not unpacked to {folder}: {error.strerror}; TMPDIR "
                "names another place"
            ) from error
        raise BundleError(f"{path}: not a zip file, or a damaged one: {error}") from error
    except Exception as error:
        if isinstance(error, BundleError):
            raise
        # Damaged streams raise whatever the decompressor raises.
        raise BundleError(f"{path}: damaged: {error}") from error


def _inside(name: str) -> PurePosixPath:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or not pure.parts:
        raise BundleError(f"the file name {name!r} leads out of the bundle")
    return pure


def _read(folder: Path, given: Path) -> Bundle:
    """Read `bundle.json`, check it field by field, then check every file.

    Args:
        folder: where the files are.
        given: what errors call it: the folder, or the zip file that was unpacked there.
    """
    try:
        about = json.loads((folder / SPECIFICATION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        inner = next(folder.glob(f"*/{SPECIFICATION}"), None)
        hint = (
            f"; there is one in its folder {inner.parent.name}: give or pack that" if inner else ""
        )
        raise BundleError(f"{given}: no {SPECIFICATION}, so this is no bundle{hint}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{given / SPECIFICATION}: cannot be read: {error}") from error
    fields = Fields(about, SPECIFICATION)
    if fields.text("format") != FORMAT:
        raise BundleError(f"expected the format {FORMAT!r}, got {about['format']!r}")
    if fields.integer("version") != VERSION:
        raise BundleError(
            f"the bundle is of version {about['version']}, this runtime reads {VERSION}: "
            "upgrade cris-edge, or build the bundle anew"
        )
    _verify_files(folder, fields.mapping("files"))
    bundle = _specification(folder, fields, about)
    _check_sizes(bundle)
    for name in (bundle.tokenizer, *(graph.file for graph in bundle.graphs.values())):
        weights = str(PurePosixPath(name).with_suffix(".bin"))
        if name.endswith(".xml") and weights not in about["files"]:
            raise BundleError(f"{weights!r} is used, but is not among the bundle's files")
        if name not in about["files"]:
            raise BundleError(f"{name!r} is used, but is not among the bundle's files")
    for name in other_files(folder, about["files"]):
        # What macOS leaves in every folder and archive; no engine reads it.
        last = PurePosixPath(name).name
        if last != ".DS_Store" and not last.startswith("._"):
            raise BundleError(
                f"{given}: holds {name!r}, which {SPECIFICATION} does not list; "
                "take it out of the bundle's folder"
            )
    return bundle


def _verify_files(folder: Path, files: Fields) -> None:
    for name in files.values:
        _inside(name)
        path = folder / name
        # All but the last of the parents, which is the bundle's own folder.
        linked = any(
            (folder / part).is_symlink() for part in (name, *PurePosixPath(name).parents[:-1])
        )
        if not path.is_file() or linked:
            raise BundleError(f"{name}: listed in {SPECIFICATION}, but missing")
        if (found := sha256(path)) != files.text(name):
            raise BundleError(
                f"{name}: altered or damaged: its SHA-256 is {found}, expected {files.text(name)}"
            )


def other_files(folder: Path, listed: Collection[str]) -> list[str]:
    """Names of the files in a bundle's folder beside `bundle.json` and those it lists."""
    # A link to a folder is no folder of the bundle's.
    found = (
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )
    return sorted({path.as_posix() for path in found} - {SPECIFICATION, *listed})


def _specification(folder: Path, fields: Fields, about: Mapping[str, Any]) -> Bundle:
    image, text, mask = (fields.mapping(name) for name in ("image", "text", "mask"))
    image.only("interpolation", "cubic")
    image.only("border", "mean")
    image.only("colour", "RGB")
    mask.only("interpolation", "cubic")
    mask.only("align_corners", True)
    fields.one_of("precision", PRECISIONS)
    graphs = fields.mapping("graphs")
    size = image.integer("size")
    if size <= 0 or size % 32:
        raise BundleError(f"image.size: expected a positive multiple of 32, got {size}")
    if text.integer("word_len") < 2:
        raise BundleError(f"text.word_len: expected 2 or more, got {text.integer('word_len')}")
    if not 0 <= mask.number("threshold") <= 1:
        raise BundleError(f"mask.threshold: expected 0 to 1, got {mask.number('threshold')}")
    stride = mask.integer("stride")
    if stride <= 0 or size % stride:
        raise BundleError(f"mask.stride: expected a divisor of {size}, got {stride}")
    if min(image.triple("std")) <= 0:
        raise BundleError(f"image.std: expected positive numbers, got {image.triple('std')}")
    return Bundle(
        folder=folder,
        name=fields.text("name"),
        letterbox=Letterbox(size, image.triple("mean")),
        tokenizer=text.text("tokenizer"),
        word_len=text.integer("word_len"),
        threshold=mask.number("threshold"),
        precision=fields.text("precision"),
        target=fields.mapping("target").one_of("name", TARGETS),
        graphs={name: _graph(graphs.mapping(name)) for name in GRAPHS},
        about=about,
    )


def _check_sizes(bundle: Bundle) -> None:
    """Refuse sizes that are not those of the graphs, and graphs that do not fit together."""
    side, graphs = bundle.letterbox.size, bundle.graphs
    logits = side // int(bundle.about["mask"]["stride"])
    wanted = {
        "photo": {TensorSpec("frame", "uint8", (1, side, side, 3))},
        "phrase": {TensorSpec("tokens", "int64", (PHRASES, bundle.word_len))},
        "pair": {*graphs["photo"].outputs, *graphs["phrase"].outputs},
    }
    for name, tensors in wanted.items():
        if sorted(found := graphs[name].inputs, key=str) != sorted(tensors, key=str):
            raise BundleError(
                f"graphs.{name}: expected to take {_listed(tensors)}, but it takes {_listed(found)}"
            )
    result = TensorSpec("logits", "float32", (PHRASES, 1, logits, logits))
    if (found := graphs["pair"].outputs) != (result,):
        raise BundleError(
            f"graphs.pair: expected to give {_listed([result])}, but it gives {_listed(found)}"
        )


def _listed(tensors: Iterable[TensorSpec]) -> str:
    return ", ".join(sorted(f"{t.name} {t.dtype} {t.shape}" for t in tensors)) or "nothing"


def _graph(fields: Fields) -> GraphSpec:
    return GraphSpec(fields.text("file"), _tensors(fields, "inputs"), _tensors(fields, "outputs"))


def _tensors(fields: Fields, name: str) -> tuple[TensorSpec, ...]:
    specs = []
    for position, entry in enumerate(fields.typed(name, list)):
        tensor = Fields(entry, f"{fields.where}.{name}[{position}]")
        shape = tensor.typed("shape", list)
        static = shape[1:] if shape[:1] == [PHRASES] else shape
        if not all(type(axis) is int and axis > 0 for axis in static):
            raise BundleError(
                f"{tensor.where}.shape: expected positive integers, or {PHRASES!r} and such, "
                f"got {shape!r}"
            )
        dtype = tensor.one_of("dtype", DTYPES)
        specs.append(TensorSpec(tensor.text("name"), dtype, tuple(shape)))
    return tuple(specs)

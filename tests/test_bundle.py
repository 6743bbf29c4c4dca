"""Bundles: folders and zip files that describe themselves, and every damage that is refused."""

from __future__ import annotations

import errno
import functools
import gc
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cris_edge import BundleError
from cris_edge.bundle import Bundle, sha256, write_specification, write_zip
from cris_edge.letterbox import Letterbox

About = dict[str, Any]
Edit = Callable[[About], object]
fixed = settings(derandomize=True, deadline=None, max_examples=200)


def tensor(name: str, dtype: str, *shape: int | str) -> About:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def graph(name: str, inputs: list[About], outputs: list[About]) -> About:
    return {"file": f"{name}.onnx", "inputs": inputs, "outputs": outputs}


def description() -> About:
    ways = {"interpolation": "cubic", "border": "mean", "colour": "RGB"}
    frame, tokens = tensor("frame", "uint8", 1, 64, 64, 3), tensor("tokens", "int64", "phrases", 17)
    seen, said = tensor("p3", "float32", 1, 8, 4, 4), tensor("gate", "float32", "phrases", 8)
    logits = tensor("logits", "float32", "phrases", 1, 16, 16)
    return {
        "name": "made_up",
        "image": {"size": 64, "mean": [0.5, 0.25, 0.125], "std": [0.25, 0.5, 1]} | ways,
        "text": {"tokenizer": "text/tokenizer.json", "word_len": 17},
        "mask": {"threshold": 0.4, "stride": 4, "interpolation": "cubic", "align_corners": True},
        "target": {"name": "onnx"},
        "precision": "float16",
        "graphs": {
            "photo": graph("photo", [frame], [seen]),
            "phrase": graph("phrase", [tokens], [said]),
            "pair": graph("pair", [said, seen], [logits]),
        },
        "licence": "CC0-1.0",
    }


def write_made_up(folder: Path) -> Path:
    """A bundle that is none of its files' business: opening reads their sums alone."""
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "tokenizer.json").write_text("{}")
    for name in ("photo", "phrase", "pair"):
        (folder / f"{name}.onnx").write_bytes(f"graph of the {name}".encode() * 9)
    write_specification(folder, description())
    return folder


def edit(folder: Path, change: Edit) -> None:
    path = folder / "bundle.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    change(about)
    path.write_text(json.dumps(about), encoding="utf-8")


def at(about: About, path: Sequence[str | int]) -> Any:
    """A part of a description."""
    return functools.reduce(lambda part, key: part[key], path, about)


def put(value: object, *path: str | int) -> Edit:
    return lambda about: at(about, path[:-1]).__setitem__(path[-1], value)


def drop(*path: str) -> Edit:
    return lambda about: at(about, path[:-1]).pop(path[-1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_made_up(tmp_path / "bundle")


@pytest.fixture
def packed(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    write_zip(Bundle.open(folder), path)
    return path


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where zip files are unpacked during the test."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(path))
    return path


# --- folder and zip ---


@pytest.mark.parametrize("as_path", [Path, str])
def test_a_bundle_says_what_its_description_says(folder: Path, as_path: type) -> None:
    bundle = Bundle.open(as_path(folder))
    assert (bundle.name, bundle.precision, bundle.threshold) == ("made_up", "float16", 0.4)
    assert (bundle.tokenizer, bundle.word_len) == ("text/tokenizer.json", 17)
    assert bundle.letterbox == Letterbox(64, (0.5, 0.25, 0.125))
    (read,) = bundle.graphs["pair"].outputs
    assert bundle.graphs["pair"].file == "pair.onnx"
    assert (read.name, read.dtype, read.shape) == ("logits", "float32", ("phrases", 1, 16, 16))
    assert bundle.about["licence"] == "CC0-1.0"
    assert bundle.path("photo.onnx").read_bytes() == b"graph of the photo" * 9


def test_a_folder_and_its_zip_are_the_same_bundle(folder: Path, packed: Path) -> None:
    plain, unpacked = Bundle.open(folder), Bundle.open(packed)
    assert plain.about == unpacked.about
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 5
    for name in files:
        assert (folder / name).read_bytes() == unpacked.path(str(name)).read_bytes()
    sizes = [(folder / name).stat().st_size for name in files if name.name != "bundle.json"]
    assert plain.size == unpacked.size == sum(sizes)


def test_a_zips_folder_disappears_with_its_bundle(packed: Path, temporary: Path) -> None:
    bundle = Bundle.open(packed)
    assert list(temporary.iterdir()) == [bundle.folder]
    gc.collect()
    assert bundle.path("photo.onnx").is_file()
    del bundle
    gc.collect()
    assert not list(temporary.iterdir())
    assert packed.is_file()


def test_a_zip_that_cannot_be_written_leaves_the_older_one(folder: Path) -> None:
    bundle, path = Bundle.open(folder), folder.parent / "older.zip"
    path.write_bytes(b"older")
    (folder / "pair.onnx").unlink()
    with pytest.raises(FileNotFoundError):
        write_zip(bundle, path)
    assert path.read_bytes() == b"older"
    assert {entry.name for entry in folder.parent.iterdir()} == {"bundle", "older.zip"}


# --- descriptions that are refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("tar", "format"), "expected the format 'cris-edge-bundle', got 'tar'"),
        (put(3, "version"), "version 3, this runtime reads 2: upgrade"),
        (put(True, "version"), "version: expected int, got bool"),
        (drop("format"), "the field 'format' is missing"),
        (drop("files"), "the field 'files' is missing"),
        (drop("image", "std"), "bundle.json.image: the field 'std' is missing"),
        (drop("mask", "threshold"), "bundle.json.mask: the field 'threshold' is missing"),
        (drop("graphs", "pair"), "bundle.json.graphs: the field 'pair' is missing"),
        (drop("graphs", "pair", "outputs"), "graphs.pair: the field 'outputs' is missing"),
        (put(5, "name"), "name: expected str, got int"),
        (put([], "text"), "text: expected dict, got list"),
        (put("64", "image", "size"), "image.size: expected int, got str"),
        (put(True, "mask", "threshold"), "mask.threshold: expected int, got bool"),
        (put([0.5, 0.5], "image", "mean"), "image.mean: expected three numbers"),
        (put(1, "mask", "align_corners"), "align_corners: expected bool, got int"),
        (put("image", "graphs", "photo", "inputs", 0), r"inputs\[0\]: expected an object, got str"),
        (put([1, 0], "graphs", "photo", "inputs", 0, "shape"), "expected positive integers"),
        (put("int8", "graphs", "photo", "inputs", 0, "dtype"), "'int8' is none of float32"),
        (put("linear", "image", "interpolation"), "image.interpolation: .*'cubic' alone"),
        (put("linear", "mask", "interpolation"), "mask.interpolation: .*'cubic' alone"),
        (put("black", "image", "border"), "image.border: .*'mean' alone"),
        (put("BGR", "image", "colour"), "image.colour: .*'RGB' alone, not 'BGR'"),
        (put("int4", "precision"), "precision: 'int4' is none of float32, float16"),
        (put(100, "image", "size"), "image.size: expected a positive multiple of 32, got 100"),
        (put("other.onnx", "graphs", "pair", "file"), "'other.onnx' is used, but is not among"),
        (put("none.json", "text", "tokenizer"), "'none.json' is used, but is not among"),
        (drop("files", "pair.onnx"), "'pair.onnx' is used, but is not among"),
        (put("0" * 64, "files", "none.bin"), "none.bin: listed .*but missing"),
        (put(1, "text", "word_len"), "word_len"),
        (put(float("nan"), "mask", "threshold"), "threshold"),
        (put(1.5, "mask", "threshold"), "threshold"),
        (put(-0.1, "mask", "threshold"), "threshold"),
        (put(10**400, "mask", "threshold"), "threshold"),
        (put([0.5, 0, 0.5], "image", "std"), "image.std"),
        (put(3, "mask", "stride"), "mask.stride: expected a divisor of 64, got 3"),
        (put(-4, "mask", "stride"), "mask.stride: expected a divisor of 64, got -4"),
        (drop("target"), "the field 'target' is missing"),
        (put("toaster", "target", "name"), "target.name: 'toaster' is none of onnx, openvino"),
        (put([float("nan")] * 3, "image", "mean"), "image.mean"),
        (put([10**400, 0, 0], "image", "mean"), "image.mean"),
        (
            put("frames", "graphs", "photo", "inputs", 0, "name"),
            r"graphs\.photo: expected to take frame uint8 .* but it takes frames uint8",
        ),
        (put(18, "text", "word_len"), r"graphs\.phrase: .*, 18\), but it takes .*, 17\)"),
        (
            put([1, 8, 2, 2], "graphs", "pair", "inputs", 1, "shape"),
            r"graphs\.pair: expected to take .*p3 float32 \(1, 8, 4, 4\), but it takes",
        ),
        (
            put([], "graphs", "pair", "inputs"),
            r"graphs\.pair: expected to take .*, but it takes nothing",
        ),
        (
            put("mask", "graphs", "pair", "outputs", 0, "name"),
            r"graphs\.pair: expected to give logits float32 .*, but it gives mask float32",
        ),
        (
            put([1, 1, 16, 16], "graphs", "pair", "outputs", 0, "shape"),
            r"graphs\.pair: expected to give .*but it gives logits float32 \(1, 1, 16, 16\)",
        ),
        (put(8, "mask", "stride"), r"graphs\.pair: expected to give .*1, 8, 8\)"),
    ],
)
def test_a_description_that_is_wrong_is_refused_with_the_reason(
    folder: Path, change: Edit, message: str
) -> None:
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(folder)


def test_what_a_graph_could_read_and_no_sum_covers_is_refused(folder: Path) -> None:
    for name in (".DS_Store", "text/._tokens"):
        (folder / name).write_bytes(b"the system's")
    assert Bundle.open(folder).name == "made_up"
    for name in ("text/weights.bin", ".weights.bin"):
        (folder / name).write_bytes(b"beside a graph")
        with pytest.raises(BundleError, match=rf"holds '{name}', which bundle\.json does not"):
            Bundle.open(folder)
        (folder / name).unlink()
    (folder / "linked").symlink_to(folder.parent)
    with pytest.raises(BundleError, match=r"holds 'linked', which bundle\.json does not"):
        Bundle.open(folder)


def test_a_zip_of_the_folder_itself_is_told_from_no_bundle(folder: Path, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "p"), "zip", folder.parent, folder.name)
    with pytest.raises(
        BundleError, match=rf"^{packed}: no bundle\.json, .* in its folder {folder.name}:"
    ):
        Bundle.open(packed)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".zip"])
def test_names_that_no_disk_has_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(BundleError, match="cannot be read: File name too long"):
        Bundle.open(folder / name)
    edit(folder, put("0" * 64, "files", name))
    with pytest.raises(BundleError, match="cannot be read: File name too long"):
        Bundle.open(folder)


def test_files_from_a_board_without_a_clock_are_packed(folder: Path) -> None:
    os.utime(folder / "pair.onnx", (0, 0))
    write_zip(Bundle.open(folder), folder.with_suffix(".zip"))
    assert Bundle.open(folder.with_suffix(".zip")).name == "made_up"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bundle\.json: cannot be read"),
        (b"the man in red", r"bundle\.json: cannot be read"),
        (b"\xff\xfe{}", r"bundle\.json: cannot be read"),
        pytest.param(b"[" * 100_000, r"bundle\.json: cannot be read", id="deep"),
        (b"[]", "expected an object, got list"),
        (b"null", "expected an object, got NoneType"),
    ],
)
def test_what_is_no_json_object_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        Bundle.open(folder)


def test_what_is_not_there_is_refused(folder: Path, packed: Path, temporary: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.zip: no such bundle; expected a folder or a zip"):
        Bundle.open(folder / "none.zip")
    (folder / "bundle.json").unlink()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("photo.jpg", b"jpeg")
    for path in (folder, packed):
        with pytest.raises(BundleError, match=r"no bundle\.json, so this is no bundle"):
            Bundle.open(path)
    assert not list(temporary.iterdir())


ABOUT = description() | {"format": "cris-edge-bundle", "version": 1}
NUMBERS = st.integers() | st.floats()
ANY_JSON = st.recursive(
    NUMBERS | st.none() | st.booleans() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part),
    max_leaves=3,
)


def places(part: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path to every value within."""
    items = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_up(tmp_path_factory.mktemp("shared") / "bundle")


@fixed
@given(st.sampled_from(list(places(ABOUT))), ANY_JSON | NUMBERS)
@example(("text", "word_len"), -3)
def test_any_other_value_anywhere_is_refused_or_makes_sense(
    shared: Path, place: tuple[str | int, ...], value: object
) -> None:
    before = (shared / "bundle.json").read_text(encoding="utf-8")
    edit(shared, put(value, *place))
    try:
        bundle = Bundle.open(shared)
    except BundleError:
        return
    finally:
        (shared / "bundle.json").write_text(before, encoding="utf-8")
    assert 0 <= bundle.threshold <= 1
    assert bundle.word_len >= 2


# --- files that are refused ---


def test_altered_and_missing_files_are_refused(folder: Path) -> None:
    path = folder / "pair.onnx"
    content = path.read_bytes()
    for other in (content[:-1], content + b"\0", b"G" + content[1:], b""):
        path.write_bytes(other)
        with pytest.raises(BundleError, match=r"pair\.onnx: altered or damaged: its SHA-256 is"):
            Bundle.open(folder)
    path.unlink()
    with pytest.raises(BundleError, match=r"pair\.onnx: listed in bundle\.json, but missing"):
        Bundle.open(folder)
    path.mkdir()
    with pytest.raises(BundleError, match="but missing"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "name", ["../secret", "{}/secret", "a/../../secret", "", ".", "a\\b", "C:x"]
)
def test_names_that_lead_out_are_refused(folder: Path, name: str) -> None:
    secret = folder.parent / "secret"
    secret.write_text("secret")
    edit(folder, put(sha256(secret), "files", name.format(folder.parent)))
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["text", "text/tokenizer.json"])
def test_links_to_folders_and_files_are_refused(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(BundleError, match=r"text/tokenizer\.json"):
        Bundle.open(folder)


def test_weights_that_are_not_listed_are_refused(folder: Path) -> None:
    (folder / "pair.onnx").rename(folder / "pair.xml")
    (folder / "pair.bin").write_bytes(b"weights")
    fields = description()
    fields["graphs"]["pair"]["file"] = "pair.xml"
    assert write_specification(folder, fields).graphs["pair"].file == "pair.xml"
    # OpenVINO takes the weights from there all the same, whatever they are.
    edit(folder, drop("files", "pair.bin"))
    with pytest.raises(BundleError, match=r"pair\.bin"):
        Bundle.open(folder)


# --- zip files that are refused ---


@pytest.mark.parametrize("name", ["../evil", "text/../../evil", "/evil", "a\\..\\evil", "C:evil"])
def test_zip_files_whose_names_lead_out_write_nothing(
    packed: Path, temporary: Path, name: str
) -> None:
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(name, "evil")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(packed)
    assert not list(temporary.iterdir())
    assert not list(packed.parent.rglob("*evil*"))


def test_a_disk_that_is_full_is_not_the_zips_fault(
    packed: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(BundleError, match=r"not unpacked to .*: No space left .*TMPDIR"):
        Bundle.open(packed)
    assert not list(temporary.iterdir())


def test_links_in_zip_files_become_plain_files(folder: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed, "w") as archive:
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            entry.create_system, entry.external_attr = 3, 0o120777 << 16
            archive.writestr(entry, path.read_bytes())
    bundle = Bundle.open(packed)
    assert not any(path.is_symlink() for path in bundle.folder.rglob("*"))


def test_a_zip_that_announces_too_much_is_refused_before_it_is_unpacked(
    packed: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(member.file_size for member in zipfile.ZipFile(packed).infolist())
    monkeypatch.setattr("cris_edge.bundle.MAX_BYTES", size)
    assert Bundle.open(packed)
    monkeypatch.setattr("cris_edge.bundle.MAX_BYTES", size - 1)
    with pytest.raises(BundleError, match=f"unpacks to more than {size - 1} bytes"):
        Bundle.open(packed)


def test_a_zip_that_announces_too_little_is_refused(packed: Path, temporary: Path) -> None:
    large = 2**24 + 12_345
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(large))
    content = packed.read_bytes()
    assert content.count(large.to_bytes(4, "little")) == 2
    packed.write_bytes(content.replace(large.to_bytes(4, "little"), (5).to_bytes(4, "little")))
    with pytest.raises(BundleError, match="damaged"):
        Bundle.open(packed)
    assert not list(temporary.iterdir())


@pytest.fixture(scope="module")
def sound(shared: Path) -> bytes:
    path = shared.parent / "sound.zip"
    write_zip(Bundle.open(shared), path)
    return path.read_bytes()


def open_bytes(shared: Path, content: bytes) -> Bundle:
    path = shared.parent / "damaged.zip"
    path.write_bytes(content)
    return Bundle.open(path)


@fixed
@given(st.floats(0, 1, exclude_max=True))
def test_a_zip_that_is_cut_anywhere_is_refused(shared: Path, sound: bytes, share: float) -> None:
    with pytest.raises(BundleError, match="damaged"):
        open_bytes(shared, sound[: int(share * len(sound))])


@fixed
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1))
def test_damaged_bytes_are_refused_or_change_nothing(
    shared: Path, sound: bytes, flips: list[tuple[float, int]]
) -> None:
    content = bytearray(sound)
    for share, bits in flips:
        content[int(share * len(content))] ^= bits
    try:
        bundle = open_bytes(shared, bytes(content))
    except BundleError:
        return
    assert bundle.about == Bundle.open(shared).about
    for name in bundle.about["files"]:
        assert bundle.path(name).read_bytes() == (shared / name).read_bytes()

"""From photos of every kind and phrases to masks, with both engines; and what is refused."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cris_edge import InputError, Segmenter
from cris_edge.bundle import Bundle, write_zip
from cris_edge.photo import Photo
from tests.scenes import PHRASES, photo, sensitive_model, small_tokenizer
from training.predictor import torch_segmenter

ENGINES = ("onnxruntime", "openvino")
SIZES = [(8, 8), (8, 8192), (8192, 8), (9, 301), (640, 480)]
THRESHOLD = 0.35


@pytest.fixture(scope="module")
def segmenters(sensitive_bundle: Path) -> dict[str, Segmenter]:
    return {engine: Segmenter(sensitive_bundle, engine=engine, threads=1) for engine in ENGINES}


@pytest.fixture(params=ENGINES)
def segmenter(request: pytest.FixtureRequest, segmenters: dict[str, Segmenter]) -> Segmenter:
    return segmenters[request.param]


@pytest.fixture(scope="module")
def fast(segmenters: dict[str, Segmenter]) -> Segmenter:
    return segmenters["onnxruntime"]


def probability(segmenter: Segmenter, source: object, phrase: str = "red car") -> NDArray:
    return segmenter.predict(source, phrase).probability


# --- both engines compute the model ---


@pytest.mark.parametrize("size", [(120, 160), (97, 61), (33, 200)])
def test_both_engines_give_what_the_model_gives_in_torch(
    segmenters: dict[str, Segmenter], size: tuple[int, int]
) -> None:
    tokenizer = small_tokenizer()
    wanted = torch_segmenter(sensitive_model(tokenizer), tokenizer, THRESHOLD)
    expected = wanted.predict(photo(1, *size), PHRASES)
    assert any(0.05 < result.coverage < 0.95 for result in expected)
    for segmenter in segmenters.values():
        for result, other in zip(
            segmenter.predict(photo(1, *size), PHRASES), expected, strict=True
        ):
            np.testing.assert_allclose(result.probability, other.probability, atol=1e-4)
            assert (result.mask == other.mask).mean() >= 0.999
            assert result.threshold == other.threshold == THRESHOLD


def test_masks_depend_on_the_photo_and_on_the_phrase(segmenter: Segmenter) -> None:
    first = probability(segmenter, photo(1))
    assert np.abs(first - probability(segmenter, photo(2))).max() > 0.05
    assert np.abs(first - probability(segmenter, photo(1), "the dog")).max() > 0.05


# --- photos of every kind ---


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_mask_has_the_photos_own_size(segmenter: Segmenter, height: int, width: int) -> None:
    result = segmenter.predict(photo(3, height, width), "red car")
    assert result.mask.shape == result.probability.shape == (height, width)
    assert result.mask.dtype == bool
    assert result.probability.dtype == np.float32
    assert 0 <= result.probability.min() <= result.probability.max() <= 1


def test_a_photo_of_8k_is_segmented(fast: Segmenter) -> None:
    assert fast.predict(photo(3, 4320, 7680), "red car").mask.shape == (4320, 7680)


def read_only(pixels: Photo) -> Photo:
    copied = pixels.copy()
    copied.setflags(write=False)
    return copied


def within_another(pixels: Photo) -> Photo:
    height, width = pixels.shape[:2]
    larger = np.full((height + 9, 2 * width, 5), 7, np.uint8)
    larger[4:-5, ::2, 1:4] = pixels
    return larger[4:-5, ::2, 1:4]


LAYOUTS: dict[str, Callable[[Photo], Photo]] = {
    "columns first": np.asfortranarray,
    "backwards in memory": lambda p: np.ascontiguousarray(p[::-1, ::-1])[::-1, ::-1],
    "colours backwards": lambda p: np.ascontiguousarray(p[..., ::-1])[..., ::-1],
    "channels first": lambda p: np.ascontiguousarray(p.transpose(2, 0, 1)).transpose(1, 2, 0),
    "within another": within_another,
    "read only": read_only,
    "with alpha": lambda p: np.dstack([p, photo(9, *p.shape[:2])[..., 0]]),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_same_pixels_in_another_layout_give_the_same_mask(
    segmenter: Segmenter, layout: Callable[[Photo], Photo]
) -> None:
    pixels = photo(4)
    np.testing.assert_array_equal(
        probability(segmenter, layout(pixels)), probability(segmenter, pixels)
    )


def test_grey_photos_are_photos_of_three_equal_colours(segmenter: Segmenter) -> None:
    grey = photo(4)[..., 1]
    wanted = probability(segmenter, np.dstack([grey] * 3))
    np.testing.assert_array_equal(probability(segmenter, grey), wanted)
    np.testing.assert_array_equal(probability(segmenter, grey[..., None]), wanted)
    np.testing.assert_array_equal(probability(segmenter, np.asfortranarray(grey)), wanted)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
@pytest.mark.parametrize("kind", [Path, str])
def test_a_file_gives_what_its_pixels_give(
    fast: Segmenter, tmp_path: Path, suffix: str, kind: type
) -> None:
    path = tmp_path / f"straße 1{suffix}"
    path.write_bytes(cv2.imencode(suffix, photo(4))[1].tobytes())
    np.testing.assert_array_equal(probability(fast, kind(path)), probability(fast, photo(4)))


def test_grey_transparent_and_deep_files_are_read_as_colours(
    fast: Segmenter, tmp_path: Path
) -> None:
    grey, path = photo(4)[..., 0], str(tmp_path / "photo.png")
    for pixels, same in (
        (grey, np.dstack([grey] * 3)),
        (np.dstack([photo(4), grey]), photo(4)),
        (photo(4).astype(np.uint16) * 257, photo(4)),
    ):
        cv2.imwrite(path, pixels)
        np.testing.assert_array_equal(probability(fast, path), probability(fast, same))


def exif(orientation: int) -> bytes:
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + bytes([0, orientation, 0, 0])
    body = b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry + bytes(4)
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body


def test_a_file_is_turned_as_its_exif_data_says(fast: Segmenter, tmp_path: Path) -> None:
    jpeg, path = cv2.imencode(".jpg", photo(4))[1].tobytes(), tmp_path / "photo.jpg"
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    path.write_bytes(jpeg[:2] + exif(6) + jpeg[2:])
    turned = cv2.rotate(decoded, cv2.ROTATE_90_CLOCKWISE)
    np.testing.assert_array_equal(probability(fast, path), probability(fast, turned))


def test_the_photo_is_left_as_it_is(segmenter: Segmenter) -> None:
    pixels = photo(4)
    segmenter.predict(pixels, PHRASES)
    np.testing.assert_array_equal(pixels, photo(4))


# --- photos that are refused ---


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (photo().astype(np.float32) / 255, r"must be uint8 in \[0, 255\], not float32"),
        (photo().astype(np.int64), "must be uint8 .*not int64"),
        (photo() > 9, "must be uint8 .*not bool"),
        (np.zeros((0, 0, 3), np.uint8), "8 to 8192 pixels, not 0 x 0"),
        (np.zeros((0,), np.uint8), r"shape \(H, W, 3\).*not \(0,\)"),
        (np.zeros((), np.uint8), r"shape \(H, W, 3\).*not \(\)"),
        (photo()[None], r"shape \(H, W, 3\).*not \(1, 120, 160, 3\)"),
        (photo()[..., :2], r"shape \(H, W, 3\).*not \(120, 160, 2\)"),
        (photo().transpose(2, 0, 1), r"shape \(H, W, 3\).*not \(3, 120, 160\)"),
        (photo(0, 7, 160), "8 to 8192 pixels, not 160 x 7"),
        (photo(0, 120, 7), "8 to 8192 pixels, not 7 x 120"),
        (photo(0, 8, 8193), "8 to 8192 pixels, not 8193 x 8"),
        (photo(0, 8193, 8), "8 to 8192 pixels, not 8 x 8193"),
        (None, "a path or a numpy array, not NoneType"),
        (b"photo.jpg", "a path or a numpy array, not bytes"),
        (photo().tolist(), "a path or a numpy array, not list"),
        ("", "cannot be read"),
        ("no\0name.jpg", "cannot be read"),
        ("nowhere/none.jpg", "none.jpg: the photo cannot be read: No such file"),
    ],
)
def test_what_is_no_photo_is_refused(fast: Segmenter, source: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fast.predict(source, "red car")


JPEG = cv2.imencode(".jpg", photo(5, 480, 640))[1].tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "not an image", id="empty"),
        pytest.param(b"the man in red" * 99, "not an image", id="text"),
        pytest.param(JPEG[:200], "not an image", id="JPEG's head"),
        pytest.param(JPEG[: len(JPEG) // 2], "not an image", id="JPEG's first half"),
        pytest.param(JPEG[:-20], "not an image", id="JPEG but for 20 bytes"),
        pytest.param(
            cv2.imencode(".png", photo(0, 7, 99))[1].tobytes(), "not 99 x 7", id="too small"
        ),
        pytest.param(
            cv2.imencode(".png", photo(0, 8, 9000))[1].tobytes(), "not 9000 x 8", id="too large"
        ),
    ],
)
def test_files_that_are_no_photo_are_refused(
    fast: Segmenter, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        fast.predict(path, "red car")
    with pytest.raises(InputError, match="cannot be read"):
        fast.predict(tmp_path, "red car")


# --- phrases ---


@pytest.mark.parametrize("phrase", ["", " ", "\t\n", "\u3000", "&nbsp;", "\x00"])
@pytest.mark.parametrize("several", [False, True])
def test_phrases_of_nothing_are_refused(fast: Segmenter, phrase: str, several: bool) -> None:
    with pytest.raises(InputError, match="is empty; say what to find"):
        fast.predict(photo(), ["red car", phrase] if several else phrase)


def test_a_number_of_thousands_of_digits_is_no_phrase(fast: Segmenter) -> None:
    with pytest.raises(InputError, match="the phrase holds an HTML entity"):
        fast.predict(photo(), "red car &#" + "9" * 5000)


@pytest.mark.parametrize("phrase", [None, 3, 1.5, b"red car", ["red car", None], ["red car", 3]])
def test_what_is_no_phrase_is_refused(fast: Segmenter, phrase: object) -> None:
    with pytest.raises(InputError, match="a phrase must be a str such as 'the man in red', not "):
        fast.predict(photo(), phrase)  # type: ignore[arg-type]


def test_a_sequence_gives_one_result_a_phrase_in_its_order(segmenter: Segmenter) -> None:
    phrases = [*PHRASES, PHRASES[0]]
    results = segmenter.predict(photo(6), phrases)
    assert [result.phrase for result in results] == phrases
    for phrase, result in zip(phrases, results, strict=True):
        alone = probability(segmenter, photo(6), phrase)
        # Matrix products of another batch round otherwise.
        np.testing.assert_allclose(result.probability, alone, atol=1e-5)
    assert [result.phrase for result in segmenter.predict(photo(6), tuple(phrases))] == phrases


def test_no_phrases_give_no_results(fast: Segmenter) -> None:
    assert fast.predict(photo(), []) == []
    with pytest.raises(InputError, match="not NoneType"):
        fast.predict(None, [])


# --- results and threads ---


def test_results_own_their_memory(segmenter: Segmenter) -> None:
    results = segmenter.predict(photo(1), PHRASES)
    before = [result.probability.copy() for result in results]
    for seed in (2, 3):
        segmenter.predict(photo(seed), PHRASES)
    for result, kept in zip(results, before, strict=True):
        np.testing.assert_array_equal(result.probability, kept)
    results[0].probability[:] = 0
    np.testing.assert_array_equal(results[1].probability, before[1])
    again = segmenter.predict(photo(1), PHRASES)[0]
    np.testing.assert_array_equal(again.probability, before[0])


def test_many_threads_at_once_get_what_one_gets(segmenter: Segmenter) -> None:
    jobs = [(photo(s, 80 + 10 * s, 90), PHRASES[s % 4]) for s in range(8)]
    serial = [probability(segmenter, *job) for job in jobs]
    barrier = Barrier(len(jobs))

    def work(first: int) -> list[NDArray]:
        barrier.wait()
        order = [*range(first, len(jobs)), *range(first)]
        found = {index: probability(segmenter, *jobs[index]) for index in order}
        return [found[index] for index in range(len(jobs))]

    with ThreadPoolExecutor(len(jobs)) as pool:
        for found in pool.map(work, range(len(jobs))):
            for one, other in zip(found, serial, strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_zip_files_segmenter_works_as_long_as_it_lives(
    sensitive_bundle: Path, segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write_zip(Bundle.open(sensitive_bundle), tmp_path / "small.zip")
    opened = Segmenter(str(tmp_path / "small.zip"), engine=segmenter.info.engine, threads=1)
    gc.collect()
    np.testing.assert_array_equal(probability(opened, photo()), probability(segmenter, photo()))
    del opened
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["small.zip"]

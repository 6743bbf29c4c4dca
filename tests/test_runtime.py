"""What a segmenter does once: photos encoded for later, phrases remembered, streams overlapped."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cris_edge import EncodedPhoto, InputError, Segmenter
from cris_edge.bundle import MAX_PHRASES
from cris_edge.phrases import Phrases
from tests.scenes import PHRASES, photo, sensitive_model, small_tokenizer
from tests.test_segmenter import ENGINES
from training.predictor import letterbox_of, torch_graphs

WORDS = ("red", "dog", "car", "man", "left", "cat", "blue", "small", "bus", "hat", "tree")


class Counted:
    """A graph that counts its runs, and how many phrases each had."""

    def __init__(self, graph: Any):
        self.graph = graph
        self.runs: list[int] = []

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.runs.append(len(inputs.get("tokens", inputs.get("gate", [0]))))
        results: dict[str, Any] = self.graph(inputs)
        return results

    def fetch(self, value: Any) -> Any:
        return self.graph.fetch(value)


@pytest.fixture(scope="module")
def bundle(sensitive_bundle: Path) -> Path:
    return sensitive_bundle


@pytest.fixture(scope="module", params=ENGINES)
def segmenter(request: pytest.FixtureRequest, bundle: Path) -> Segmenter:
    return Segmenter(bundle, engine=request.param, threads=1)


@pytest.fixture
def counted(bundle: Path) -> tuple[Segmenter, dict[str, Counted]]:
    """A segmenter in torch whose graphs are counted."""
    tokenizer = small_tokenizer()
    model = sensitive_model(tokenizer)
    graphs = {name: Counted(graph) for name, graph in torch_graphs(model).items()}
    made = Segmenter.from_graphs(
        letterbox_of(model.config),
        tokenizer,
        model.config.word_len,
        0.35,
        graphs,
        Segmenter(bundle, threads=1).info,
    )
    return made, graphs


# --- photos ---


def test_an_encoded_photo_gives_what_the_photo_gives(segmenter: Segmenter) -> None:
    encoded = segmenter.encode(photo(1, 97, 61))
    # Other photos in between do not change what is kept.
    segmenter.predict(photo(2), PHRASES)
    for phrase in PHRASES:
        found, wanted = (segmenter.predict(p, phrase) for p in (encoded, photo(1, 97, 61)))
        np.testing.assert_array_equal(found.probability, wanted.probability)
    assert segmenter.predict(encoded, []) == []


def test_encoded_photos_can_be_kept_in_sets(segmenter: Segmenter) -> None:
    one, other = (segmenter.encode(photo(1)) for _ in range(2))
    assert one in [other, one]
    assert {one, other, one} == {other, one}
    assert one != other


def test_a_photo_is_encoded_once(counted: tuple[Segmenter, dict[str, Counted]]) -> None:
    segmenter, graphs = counted
    encoded = segmenter.encode(photo())
    for phrase in PHRASES:
        segmenter.predict(encoded, phrase)
    assert len(graphs["photo"].runs) == 1
    assert graphs["pair"].runs == [1] * len(PHRASES)


def test_a_photo_encoded_by_another_segmenter_is_refused(
    segmenter: Segmenter, bundle: Path
) -> None:
    other = Segmenter(bundle, threads=1).encode(photo())
    with pytest.raises(InputError, match="encoded by another segmenter"):
        segmenter.predict(other, "red car")


# --- phrases ---


def test_phrases_are_batched_and_remembered(counted: tuple[Segmenter, dict[str, Counted]]) -> None:
    segmenter, graphs = counted
    segmenter.predict(photo(), ["red car", "the dog", "red car"])
    segmenter.predict(photo(1), ["the dog", "white cat", "Red  CAR "])
    # The same tokens are the same phrase.
    assert graphs["phrase"].runs == [2, 1]
    assert graphs["pair"].runs == [3, 3]


def test_many_phrases_run_a_few_at_a_time(
    counted: tuple[Segmenter, dict[str, Counted]], segmenter: Segmenter
) -> None:
    own, graphs = counted
    texts = [f"{a} {b}" for a, b in itertools.pairwise(WORDS * 2)]
    results = own.predict(photo(), texts)
    assert [result.phrase for result in results] == texts
    assert graphs["pair"].runs == [MAX_PHRASES, MAX_PHRASES, len(texts) - 2 * MAX_PHRASES]
    for result, other in zip(results, segmenter.predict(photo(), texts), strict=True):
        np.testing.assert_allclose(result.probability, other.probability, atol=1e-4)


def test_only_the_latest_phrases_are_kept() -> None:
    tokenizer = small_tokenizer()
    graph = Counted(torch_graphs(sensitive_model(tokenizer))["phrase"])
    phrases = Phrases(tokenizer, 8, graph, kept=3)
    for word in ("red", "dog", "car"):
        phrases([word])
    phrases(["red"])
    assert len(graph.runs) == 3
    phrases(["man"])
    assert len(phrases) == 3
    # "dog" was used longest ago.
    phrases(["red", "car", "man"])
    assert len(graph.runs) == 4
    phrases(["dog"])
    assert len(graph.runs) == 5


def test_more_phrases_than_are_kept_are_encoded_all_the_same() -> None:
    tokenizer = small_tokenizer()
    graph = torch_graphs(sensitive_model(tokenizer))["phrase"]
    few, many = (Phrases(tokenizer, 8, graph, kept) for kept in (2, 99))
    said, wanted = few(WORDS), many(WORDS)
    assert said["gate"].shape[0] == len(WORDS)
    for name, array in said.items():
        np.testing.assert_array_equal(array, wanted[name])
    assert len(few) == 2


# --- streams ---


class Camera:
    """Frames without end, which tells how many were read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            self.read += 1
            yield photo(self.read % 5, 60 + self.read % 3, 80)


@pytest.mark.parametrize("phrases", ["red car", PHRASES])
def test_a_stream_gives_what_calls_give(segmenter: Segmenter, phrases: Any) -> None:
    frames = [photo(seed, 60 + seed, 80) for seed in range(7)]
    found = list(segmenter.stream(iter(frames), phrases))
    assert len(found) == len(frames)
    for result, frame in zip(found, frames, strict=True):
        wanted = segmenter.predict(frame, phrases)
        pairs = [(result, wanted)] if isinstance(phrases, str) else zip(result, wanted, strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one.probability, other.probability)
            assert one.phrase == other.phrase
    assert list(segmenter.stream([], phrases)) == []


def test_a_stream_reads_little_ahead_and_stops_with_its_consumer(segmenter: Segmenter) -> None:
    before, camera = threading.active_count(), Camera()
    stream = segmenter.stream(camera, "red car")
    for count, _ in enumerate(itertools.islice(stream, 4), 1):
        assert camera.read <= count + 2
    stream.close()
    read = camera.read
    assert threading.active_count() == before
    assert camera.read == read <= 6


def test_a_photo_that_cannot_be_read_comes_in_its_turn(segmenter: Segmenter) -> None:
    stream = segmenter.stream([photo(1), photo(2), "nowhere.jpg", photo(3)], "red car")
    assert next(stream).phrase == next(stream).phrase == "red car"
    with pytest.raises(InputError, match=r"nowhere\.jpg"):
        next(stream)
    assert list(stream) == []


def test_what_the_source_raises_comes_in_its_turn(segmenter: Segmenter) -> None:
    def camera() -> Iterator[np.ndarray]:
        yield photo(1)
        raise OSError("the cable was pulled")

    stream = segmenter.stream(camera(), "red car")
    assert next(stream).mask.shape == (120, 160)
    with pytest.raises(OSError, match="cable"):
        next(stream)


@pytest.mark.parametrize(
    "one",
    ["a.mp4", Path("a.mp4"), photo(1), EncodedPhoto(8, 8, {}, None), 0, None],  # type: ignore[arg-type]
    ids=["str", "Path", "array", "encoded", "number", "nothing"],
)
def test_one_photo_is_no_stream(segmenter: Segmenter, one: Any) -> None:
    with pytest.raises(InputError, match="stream takes photo after photo"):
        segmenter.stream(one, "red car")


def test_phrases_of_a_stream_are_checked_at_once(segmenter: Segmenter) -> None:
    camera = Camera()
    with pytest.raises(InputError, match="is empty"):
        segmenter.stream(camera, " ")
    assert camera.read == 0

"""What holds for all tests, and bundles that many of them read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests.photo_folder import write_photos
from tests.refer_tree import Tree, write_tree
from tests.scenes import sensitive_model, small_model, small_tokenizer, write_bundle
from training.model import CRIS
from training.model.config import THRESHOLD

# As many tests run at a time as there are cores, and threads that wait for each other are slow.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small model; not to be changed."""
    return _once(tmp_path_factory, "small", lambda: small_model(small_tokenizer()))


@pytest.fixture(scope="session")
def sensitive_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small model whose masks depend on the photo; not to be changed."""
    return _once(tmp_path_factory, "sensitive", lambda: sensitive_model(small_tokenizer()))


def _once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[], CRIS]) -> Path:
    """Write a bundle once for all processes that share the tests: tracing takes long."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    folder = place / name
    with FileLock(place / f"{name}.lock"):
        if not (folder / "bundle.json").exists():
            write_bundle(folder, make(), small_tokenizer(), THRESHOLD)
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """RefCOCO in small, in its published files; a test's own."""
    return write_tree(tmp_path, "refcoco")


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Photos with masks and expressions in small; a test's own."""
    return write_photos(tmp_path)

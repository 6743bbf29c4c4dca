"""`training.prepare` run on a small tree, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.refer_tree import Tree
from training import prepare
from training.data.prepared import PreparedReferences, open_references
from training.data.references import Reference


def run(tree: Tree, *more: str) -> int:
    arguments = ["--root", str(tree.root), "--dataset", tree.dataset, "--workers", "1", *more]
    return prepare.main(arguments)


def out_of(tree: Tree) -> Path:
    return tree.root / "prepared" / tree.dataset


def listing_of(tree: Tree) -> Path:
    return tree.root / "prepared" / f"{tree.dataset}-problems.txt"


def prepared(tree: Tree) -> PreparedReferences:
    assert run(tree) == 0
    return open_references(out_of(tree))


def told(reference: Reference) -> dict[str, Any]:
    """All that a reference says, to compare by."""
    photo, target = reference.photo, reference.target
    fields = ("id", "category", "box", "area", "crowd", "weight", "has_mask", "objects")

    def tell(instance: Any) -> list[Any]:
        mask = instance.mask().tobytes() if instance.has_mask else None
        return [*(getattr(instance, name) for name in fields), mask]

    return {
        "id": reference.id,
        "sentences": reference.sentences,
        "photo": (photo.id, photo.path, photo.width, photo.height, photo.person_only),
        "instances": [tell(instance) for instance in photo.instances],
        "target": tell(target),
    }


def listed(references: list[Reference]) -> list[dict[str, Any]]:
    """Collate for loaders: what each reference says."""
    return [told(reference) for reference in references]

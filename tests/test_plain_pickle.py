"""Pickles are read where they hold plain data, and nothing in them is ever run."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.refer_tree import Tree, write_tree
from training.data.plain_pickle import read_plain_pickle
from training.data.refer import read_refer
from training.errors import DataError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
        | st.sets(st.integers() | st.text(max_size=3), max_size=4)
        | st.frozensets(st.binary(max_size=3), max_size=4)
    ),
    max_leaves=12,
)


@given(content=PLAIN, protocol=st.sampled_from(PROTOCOLS))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_plain_data_come_back_from_every_protocol(
    tmp_path_factory: pytest.TempPathFactory, content: Any, protocol: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.p"
    path.write_bytes(pickle.dumps(content, protocol))
    # By repr, which tells -0.0 from 0.0 and takes one NaN for another; sets have no order.
    assert canonical(read_plain_pickle(path)) == canonical(content)


def canonical(content: Any) -> Any:
    kind = type(content).__name__
    if isinstance(content, dict):
        return kind, [(repr(key), canonical(value)) for key, value in content.items()]
    if isinstance(content, (list, tuple)):
        return kind, [canonical(value) for value in content]
    if isinstance(content, (set, frozenset)):
        return kind, sorted(map(repr, content))
    return kind, repr(content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"U\x05caf\xc3\xa9.", "café"),
        (b"S'caf\\xc3\\xa9'\n.", "café"),
        (b"T\x02\x00\x00\x00\xffa.", "\ufffda"),
        (b"V\\u4e2d\n.", "中"),
        (b"L12345678901234567890L\n.", 12345678901234567890),
        (b"(lp0\nI1\naI01\na.", [1, True]),
        (b"c__builtin__\nset\n((lI3\natR.", {3}),
    ],
)
def test_what_python_2_wrote_is_read(content: bytes, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "old.p").write_bytes(content)
    assert read_plain_pickle(tmp_path / "old.p") == expected


class Calls:
    """Unpickled the ordinary way, it calls something."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_code_in_a_pickle_is_never_run(protocol: int, tree: Tree, tmp_path: Path) -> None:
    marker = tmp_path / "was_run"
    traps = {
        f"{os.system.__module__}.system": Calls(os.system, f"touch {marker}"),
        "eval": Calls(eval, f"open({str(marker)!r}, 'w').close()"),
        "exec": Calls(exec, f"open({str(marker)!r}, 'w').close()"),
        "open": Calls(open, str(marker), "w"),
        "getattr": Calls(getattr, marker, "touch"),
        "__import__": Calls(builtins.__import__, "os"),
        ".Popen": Calls(subprocess.Popen, ["touch", str(marker)]),
    }
    for words, trap in traps.items():
        tree.refs[0]["sentences"][0]["raw"] = trap
        tree.references.write_bytes(pickle.dumps(tree.refs, protocol))
        with pytest.raises(DataError) as refused:
            read_refer(tree.root, tree.dataset)
        assert str(tree.references) in str(refused.value)
        assert words in str(refused.value)
        assert "which was not run" in str(refused.value)
        assert not marker.exists()
    # The trap works: whoever unpickles without care is caught.
    tree.refs[0]["sentences"][0]["raw"] = traps[f"{os.system.__module__}.system"]
    pickle.loads(pickle.dumps(tree.refs, protocol))
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "asks for os.system, which was not run"),
        (b"(S'true'\nios\nsystem\n.", "asks for os.system, which was not run"),
        (b"\x80\x04\x8c\x08builtins\x8c\x0cset.__init__\x93.", "asks for builtins.set.__init__"),
        (b"ccollections\nOrderedDict\n(tR.", "asks for collections.OrderedDict"),
        (b"c__builtin__\nbytes\n(I99999999999\ntR.", "asks for a call with int"),
        (b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.", "asks for a call with str and 'rot13'"),
        (b"P12\n.", "an object that is kept elsewhere"),
        (b"\x80\x02K\x01Q.", "an object that is kept elsewhere"),
        (b"c_codecs\nencode\n(dS'encoding'\nS'x'\nsb.", "damaged"),
        (b"\x80\x02\x82\x01.", "damaged"),
        (b"\x80\x63.", "damaged"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged"),
        (b"", "damaged"),
        (b"no pickle at all", "damaged"),
    ],
)
def test_pickles_of_anything_else_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_plain_pickle(path)
    assert str(path) in str(refused.value)
    assert words in str(refused.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_truncated_pickle_is_refused_wherever_it_ends(protocol: int, tmp_path: Path) -> None:
    tree = write_tree(tmp_path, "refcocog_google", protocol)
    whole = tree.references.read_bytes()
    for end in (*range(0, len(whole), 97), len(whole) - 1):
        tree.references.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"refs\(google\)\.p: damaged"):
            read_refer(tree.root, tree.dataset)


def test_a_pickle_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_plain_pickle(tmp_path / "nowhere.p")


def test_the_tests_pickles_are_as_python_2_wrote_them(tree: Tree) -> None:
    content = tree.references.read_bytes()
    assert b"U\x06ref_id" in content
    assert pickle.Unpickler(io.BytesIO(content), encoding="bytes").load()[0][b"split"] == b"train"

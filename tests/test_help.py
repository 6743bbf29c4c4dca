"""What every command says of itself."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("training", "quantize", "export")
    for path in (ROOT / package).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def test_there_are_commands() -> None:
    assert {"training.train", "quantize.distill", "export.build"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_is_for_and_shows_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(command).main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m {command} ")
    said, found, examples = text.partition("\nexample")
    assert found
    assert f"python -m {command} " in examples
    # What it is for, between the usage and the arguments.
    about = said.partition("\n\n")[2].partition("\noptions:")[0].partition("\npositional ")[0]
    assert len(about) > 80

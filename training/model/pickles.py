"""Why torch refused a pickle, in words that suit whoever gave the file."""

from __future__ import annotations

import re


def refusal(error: Exception) -> str | None:
    """What a file that `torch.load(weights_only=True)` refused asks for.

    torch's own message goes on to tell how to run the code after all, which nobody should do with
    a file from elsewhere.

    Returns:
        A clause without a full stop, or None where the refusal has another reason.
    """
    text = str(error)
    if code := re.search(r"GLOBAL (\S+) was not an allowed global", text):
        return f"it asks for {code[1]}, which was not run"
    if "TorchScript" in text:
        return "it is TorchScript, which is code; give the state_dict alone"
    return None

"""What the figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "cris-edge", "numpy", "opencv-python-headless", "onnxruntime", "openvino", "torch",
    "transformers",
)  # fmt: skip
UNITS = {
    "AVX-512": "avx512f",
    "VNNI": "avx512_vnni",
    "AVX-VNNI": "avx_vnni",
    "bf16": "avx512_bf16",
    "AMX": "amx_tile",
    "NEON dot": "asimddp",
}
"""What a processor may have for the arithmetic of networks, and Linux's word for it."""


def describe() -> dict[str, Any]:
    """Processor, cores, what it computes with, system, versions and date."""
    processor, words = platform.processor() or platform.machine(), set[str]()
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8").splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            processor = value if name == "model name" else processor
            words |= set(value.split()) if name in ("flags", "Features") else set()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": processor,
        "cores": os.cpu_count(),
        "units": [unit for unit, word in UNITS.items() if word in words],
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "packages": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def in_words(machine: dict[str, Any]) -> str:
    """Two lines for people."""
    units = ", ".join(machine["units"]) or "none of " + ", ".join(UNITS)
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores ({units}), "
        f"{machine['system']}\nPython {machine['python']}, {packages}"
    )

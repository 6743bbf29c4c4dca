"""Programs to copy from; `benchmark` and `memory` run as `python -m samples.benchmark`."""

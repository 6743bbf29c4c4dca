"""The parts of `python -m samples.benchmark`: what is measured, in which process, and the table."""

"""What holds for all tests."""

from __future__ import annotations

import torch

# As many tests run at a time as there are cores, and threads that wait for each other are slow.
torch.set_num_threads(1)

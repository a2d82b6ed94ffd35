"""Settings of every test run, and the study that many tests share."""

from __future__ import annotations

import torch

from tests.tiny import study

__all__ = ["study"]

# Threads that wait for one another cost these small networks more than they gain, above all beside other work.
torch.set_num_threads(1)

"""Settings of every test run."""

from __future__ import annotations

import torch

# Threads that wait for one another cost these small networks more than they gain, above all beside other work.
torch.set_num_threads(1)

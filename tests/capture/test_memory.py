"""Memory does not depend on the number of images that go to disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path

import numpy as np
import torch

from mixer_probe.capture import extract
from mixer_probe.channels import ChannelMoments
from mixer_probe.core.result import ImagesRecord
from mixer_probe.images.labelled import index_batches
from tests.networks import CASES


class Made:
    # Images that are made when they are asked for.
    class_names = None

    def __init__(self, n):
        self.ids = tuple(f"images/of/some/length/{i:08d}.jpg" for i in range(n))
        self.keys = tuple(f"{i:032d}" for i in range(n))
        self.labels = np.arange(n) % 10
        self.record = ImagesRecord("made", "", n, 10, f"{n:064d}")

    def __len__(self):
        return len(self.ids)

    def batches(self, transform, batches, *, workers="auto", pin_memory=False):
        for index in index_batches(batches, len(self)):
            yield torch.randn(len(index), 3, 32, 32)


def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 2**10


n, out = int(sys.argv[1]), Path(sys.argv[2])
model = CASES["mixer"].model()


def run(count, place):
    also = [ChannelMoments().reading(model, model.select("blocks"))]
    extract(model, Made(count), "blocks", reduce="none", batch_size=256, out=place, also=also)


run(1200, out / "first")
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
run(n, out / "run")
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peaks of memory here")
def test_peak_memory_of_2000_and_20000_images_to_disk(tmp_path: Path) -> None:
    peaks = []
    for n in (2_000, 20_000):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(n), str(tmp_path / str(n))],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < 50, peaks
    # Of the larger set the numbers alone take more than that.
    assert sum(f.stat().st_size for f in (tmp_path / "20000/run").rglob("*") if f.is_file()) > 50e6

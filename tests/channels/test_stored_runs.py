"""Channels of runs on disk, of which a part is in memory at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mixer_probe.capture.representations import Representations
from mixer_probe.channels import (
    channel_partners,
    channels_needed,
    class_selectivity,
    image_means,
    partners,
    selectivity,
)
from mixer_probe.channels.selectivity import auroc_of, dprime_of
from mixer_probe.channels.top import top_means
from mixer_probe.core.result import same
from tests.helpers.runs import write_run

N = 1300


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Representations]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "a": write_run(folder / "a", N, 2, 8),
        "b": write_run(folder / "b", N, 2, 8, side=1),
        "train": write_run(folder / "train", N, 2, 8, "train"),
    }


def test_channels_a_few_at_a_time_are_those_of_all_at_once(
    stored: dict[str, Representations], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, train = stored["a"], stored["train"]
    found = []
    for held in (image_means.HELD, 3 * 8 * N):
        monkeypatch.setattr(image_means, "HELD", held)
        blocks = [*image_means.ImageMeans(run, "blocks.1").by_channels()]
        found.append((class_selectivity(run, permutations=19), channels_needed(train, run)))
        np.testing.assert_array_equal(np.concatenate(blocks, axis=1), run["blocks.1"])
    assert [block.shape[1] for block in blocks] == [3, 3, 2]
    assert all(same(a, b) for a, b in zip(*found, strict=True))
    X = run["blocks.1"].astype(float)
    assert run.labels is not None
    np.testing.assert_allclose(found[1][0].auroc[1], auroc_of(X, run.labels))
    np.testing.assert_allclose(found[1][0].dprime[1], dprime_of(X, run.labels))


def test_the_null_of_a_sample_is_that_of_all_images(
    stored: dict[str, Representations], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = stored["a"], stored["b"]

    def measured() -> tuple[Any, Any]:
        pairs = channel_partners(a, b, "blocks.0", "blocks.1", permutations=999)
        return class_selectivity(a, permutations=999), pairs

    whole = measured()
    monkeypatch.setattr(selectivity, "_NULL_IMAGES", 500)
    monkeypatch.setattr(selectivity, "_NULL_OF_CLASS", 1)
    monkeypatch.setattr(partners, "_NULL_IMAGES", 500)
    sampled = measured()
    assert not np.array_equal(whole[0].peaks, sampled[0].peaks)
    assert not np.array_equal(whole[1].null_max, sampled[1].null_max)
    for name in ("auroc", "strength", "dprime"):
        np.testing.assert_array_equal(getattr(whole[0], name), getattr(sampled[0], name))
    np.testing.assert_array_equal(whole[1].correlation, sampled[1].correlation)
    # Quantiles of 999 draws are good to some hundredths.
    np.testing.assert_allclose(sampled[0].threshold, whole[0].threshold, rtol=0.05)
    np.testing.assert_allclose(sampled[0].null_auroc, whole[0].null_auroc, atol=0.002)
    np.testing.assert_allclose(sampled[1].threshold, whole[1].threshold, rtol=0.1)
    np.testing.assert_allclose(
        np.quantile(sampled[1].null_max, 0.5), np.quantile(whole[1].null_max, 0.5), rtol=0.05
    )


def test_correlations_of_blocks_of_images_equal_numpy(stored: dict[str, Representations]) -> None:
    a, b = stored["a"], stored["b"]
    found = channel_partners(a, b, "blocks.0", "blocks.1", k=8, permutations=0)
    r = np.corrcoef(a["blocks.0"].T.astype(float), b["blocks.1"].T.astype(float))[:8, 8:]
    expected = np.take_along_axis(r, found.partner, 1)
    np.testing.assert_allclose(found.correlation, expected, atol=1e-12)


def test_images_at_both_ends_of_a_channel_of_a_stored_run(
    stored: dict[str, Representations],
) -> None:
    run = stored["a"]
    model: Any = SimpleNamespace(
        fingerprint=run.model.fingerprint,
        record=run.model,
        layer=lambda name: run.layers[run.names().index(name)],
        input=SimpleNamespace(size=(3, 32, 32)),
        name=run.model.name,
    )

    class Source(SimpleNamespace):
        def __len__(self) -> int:
            return N

    images: Any = Source(keys=run.keys, ids=run.ids, record=run.images, batches=list)
    ((top, low),) = top_means(model, images, run, {"blocks.1": [5]}, 3)
    order = np.argsort(run["blocks.1"][:, 5], kind="stable")
    np.testing.assert_array_equal(top.index[0], order[::-1][:3])
    np.testing.assert_array_equal(low.index[0], order[:3])


MEASURED = """
import sys
import mixer_probe as mp
from mixer_probe.channels import channel_partners, channels_needed, class_selectivity

a, b, train = (mp.open_run(f"{sys.argv[1]}/{name}") for name in ("a", "b", "train"))
class_selectivity(a.only("blocks.0"), permutations=19)
channel_partners(a, b, "blocks.0", "blocks.0", permutations=19)
channels_needed(train, a, counts=[64], draws=1)
with open("/proc/self/status") as status:
    print(*(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    peaks = []
    for n in (2_000, 20_000):
        folder = tmp_path / str(n)
        write_run(folder / "a", n, 1, 160)
        write_run(folder / "b", n, 1, 160, side=1)
        write_run(folder / "train", n, 1, 160, "train")
        found = subprocess.run(
            [sys.executable, "-c", MEASURED, folder], capture_output=True, text=True, check=True
        )
        peaks.append(int(found.stdout) / 1024)
    # One layer of 20,000 images has 24 MiB in float64, and is needed several times.
    assert peaks[1] - peaks[0] < 50

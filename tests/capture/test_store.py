"""The store: round trips, interruption at any moment, and places that hold something else."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import zarr

import mixer_probe as mp
import mixer_probe.capture.run_files as run_files
import mixer_probe.capture.store as store
import mixer_probe.capture.units as units
from mixer_probe.capture import Representations, extract, open_run
from mixer_probe.core.errors import ImagesError, NonFiniteWarning, StoreError
from mixer_probe.core.result import ImagesRecord
from mixer_probe.images.labelled import index_batches
from mixer_probe.models import Model
from tests.capture.test_hooks import Twice
from tests.networks import CASES, as_model, noise

xarray = pytest.importorskip("xarray")

UNICODE = ("кот/1.png", "猫 2.jpg", "naïve\n3", "🐈", "", "a" * 300)


class Source:
    """Labelled images that break at image `fails_at` with `error`, and count the batches they
    give."""

    def __init__(self, n: int, ids: tuple[str, ...] | None = None, labels: Any = None) -> None:
        self.tensor = noise(n)
        self.ids = ids or tuple(f"{i:03d}.png" for i in range(n))
        self.labels: np.ndarray | None = np.arange(n) % 3 if labels is None else labels
        self.class_names: tuple[str, ...] | None = ("cat", "dog", "été")
        self.record = ImagesRecord("source", "test", n, 3, f"{n:064d}")
        self.fails_at: int | None = None
        self.error: BaseException = OSError("the image disk went away")
        self.starts: list[int] = []
        self.given = 0

    def __len__(self) -> int:
        return len(self.tensor)

    def batches(
        self,
        transform: Callable[[Any], torch.Tensor],
        batches: int | Iterable[Sequence[int]],
        *,
        workers: int | Literal["auto"] = "auto",
        pin_memory: bool = False,
    ) -> Iterator[torch.Tensor]:
        begun = False
        for index in index_batches(batches, len(self)):
            if not begun:
                self.starts.append(index[0])
                begun = True
            if self.fails_at is not None and max(index) >= self.fails_at:
                raise self.error
            self.given += 1
            yield self.tensor[list(index)]


@pytest.fixture(scope="module")
def model() -> Model:
    return CASES["dinov2-registers"].model()


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images a unit, in chunks of two for [16, 24] float32 tokens."""
    monkeypatch.setattr(run_files, "_CHUNK_BYTES", 2 * 16 * 24 * 4)
    monkeypatch.setattr(units, "LEAST", 4)


def same(a: Representations, b: Representations) -> None:
    assert a.record == b.record
    assert a.ids == b.ids
    assert (a.labels is None) == (b.labels is None)
    assert a.labels is None or np.array_equal(a.labels, b.labels)  # type: ignore[arg-type]
    assert a.class_names == b.class_names
    assert a.non_finite == b.non_finite
    for layer in a.layers:
        assert a[layer.name].dtype == b[layer.name].dtype
        np.testing.assert_array_equal(a[layer.name], b[layer.name])
        if a.reduce == "none" and layer.prefix_tokens:
            np.testing.assert_array_equal(a.prefix(layer.name), b.prefix(layer.name))


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["mean", "none", "prefix"])
@pytest.mark.usefixtures("small_units")
def test_what_is_stored_is_what_is_kept_in_memory(
    model: Model, tmp_path: Path, reduce: Any
) -> None:
    layers = "blocks" if reduce == "prefix" else "all"
    source = Source(11)
    kept = extract(model, source, layers, reduce=reduce, batch_size=3)
    stored = extract(model, source, layers, reduce=reduce, batch_size=3, out=tmp_path / "run.zarr")
    same(kept, stored)
    same(kept, open_run(tmp_path / "run.zarr"))
    same(kept, open_run(str(tmp_path / "run.zarr")))


def test_layers_with_many_shapes(tmp_path: Path) -> None:
    """Maps of four sizes with five numbers of channels, hidden units, logits."""
    for name in ("convnext", "mixer", "swin"):
        case = CASES[name]
        model = case.model()
        names = [n for n in model.structure.names() if n != "norm" or name != "mixer"][:60]
        names = [n for n in names if n not in ("blocks", "layers")]
        kept = extract(model, case.images(3), names, reduce="none")
        same(kept, extract(model, case.images(3), names, reduce="none", out=tmp_path / name))
        with warnings.catch_warnings(action="error"):
            opened = xarray.open_zarr(tmp_path / name)
        for layer in kept.layers:
            np.testing.assert_array_equal(opened[layer.name].values, kept[layer.name])


def test_layers_of_modules_that_run_twice(tmp_path: Path) -> None:
    twice = as_model(Twice())
    stored = extract(twice, noise(2), ["act#0", "act#1"], out=tmp_path / "run")
    assert list(open_run(tmp_path / "run")) == list(stored) == ["act#0", "act#1"]


@pytest.mark.parametrize(
    "labels", [np.zeros(6, dtype=np.int64), np.array([5, -1, 2**40, 0, 1, 2]), None]
)
def test_ids_and_labels_survive(model: Model, tmp_path: Path, labels: Any) -> None:
    """Labels that are all zero and ids that are empty are data, not missing chunks."""
    source = Source(6, ids=UNICODE)
    source.labels = labels
    source.class_names = None
    found = extract(model, source, out=tmp_path / "run")
    assert found.ids == UNICODE
    assert found.class_names is None
    assert (found.labels is None) == (labels is None)
    assert labels is None or (
        found.labels.dtype == np.int64 and found.labels.tolist() == labels.tolist()
    )  # type: ignore[union-attr]


def test_only_empty_ids(model: Model, tmp_path: Path) -> None:
    assert extract(model, Source(2, ids=("", "")), out=tmp_path / "run").ids == ("", "")


def test_names_that_are_no_utf_8_are_stored_as_they_are_printed(
    model: Model, tmp_path: Path
) -> None:
    """Names of files and of classes, as Linux allows them, also in a run that goes on."""
    source = Source(3, ids=("\udcff.png", "caf\udce9", "half \ud83d"))
    source.class_names = ("caf\udce9", "b", "c")
    source.fails_at = 2
    with pytest.raises(OSError, match="disk went away"):
        extract(model, source, out=tmp_path / "run", batch_size=1)
    source.fails_at = None
    found = extract(model, source, out=tmp_path / "run", batch_size=1)
    assert found.ids == open_run(tmp_path / "run").ids == (r"\xff.png", r"caf\xe9", r"half \ud83d")
    assert found.class_names == (r"caf\xe9", "b", "c")
    assert list(xarray.open_zarr(tmp_path / "run")["image_id"].values) == list(found.ids)


def test_float64_and_values_that_are_not_finite(tmp_path: Path) -> None:
    model = CASES["mixer"].model(torch.float64)
    with torch.no_grad():
        model.module.blocks[0].mlp_channels.fc2.bias[2] = float("nan")
    with pytest.warns(NonFiniteWarning, match="5 values of layer 'blocks.0'"):
        stored = extract(model, Source(5), "blocks.0", out=tmp_path / "run")
    assert stored["blocks.0"].dtype == np.float64
    assert np.isnan(stored["blocks.0"][:, 2]).all()
    assert open_run(tmp_path / "run").non_finite == {"blocks.0": 5}


def test_half_precision_takes_half_the_space(tmp_path: Path) -> None:
    model = CASES["mixer"].model()
    full, half = (extract(model, Source(9), dtype=kind) for kind in ("float32", "float16"))
    stored = extract(model, Source(9), dtype="float16", out=tmp_path / "run")
    for name in full:
        assert stored[name].dtype == half[name].dtype == np.float16
        np.testing.assert_array_equal(stored[name], full[name].astype(np.float16))
        np.testing.assert_array_equal(half[name], stored[name])
    cka = [mp.compare(run, run, permutations=0, resamples=0).values for run in (full, stored)]
    np.testing.assert_allclose(cka[1], cka[0], atol=2e-3)
    with pytest.raises(StoreError, match="already holds another run"):
        extract(model, Source(9), out=tmp_path / "run")
    with pytest.raises(ImagesError, match="dtype"):
        extract(model, Source(9), dtype="int8")  # type: ignore[arg-type]
    with torch.no_grad():
        model.module.blocks[0].mlp_channels.fc2.bias[2] = 1e5
    with pytest.warns(NonFiniteWarning, match="9 values of layer 'blocks.0'"):
        extract(model, Source(9), "blocks.0", dtype="float16")


def test_a_layer_of_nothing_but_nan_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    model = CASES["mixer"].model()
    with torch.no_grad():
        model.module.blocks[0].norm1.weight.fill_(float("nan"))
    with pytest.warns(NonFiniteWarning):
        extract(model, Source(3), "blocks", out=tmp_path / "run")
    assert np.isnan(open_run(tmp_path / "run")["blocks.0"]).all()


# -- other readers ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_units")
def test_xarray_reads_it_with_labels_and_without_warnings(model: Model, tmp_path: Path) -> None:
    kept = extract(model, Source(6), "all", reduce="none", out=tmp_path / "run")
    with warnings.catch_warnings(action="error"):
        opened = xarray.open_zarr(tmp_path / "run")
        prefixes = xarray.open_zarr(tmp_path / "run", group="prefix")
    assert list(opened["image_id"].values) == list(kept.ids)
    assert "image_id" in opened.coords
    assert opened["label"].values.tolist() == [0, 1, 2, 0, 1, 2]
    assert opened["blocks.0"].dims == ("image", "position_4x4", "channel_24")
    assert opened["head"].dims == ("image", "channel_5")
    np.testing.assert_array_equal(opened["blocks.1"].values, kept["blocks.1"])
    np.testing.assert_array_equal(prefixes["blocks.1"].values, kept.prefix("blocks.1"))
    assert prefixes["blocks.1"].dims == ("image", "token_5", "channel_24")
    assert opened.attrs["run"]["model"]["fingerprint"] == model.fingerprint


def test_the_store_says_what_made_it(model: Model, tmp_path: Path) -> None:
    extract(model, Source(2), out=tmp_path / "run")
    run = dict(zarr.open_group(tmp_path / "run", mode="r").attrs)["run"]
    assert run["model"]["name"] == "VisionTransformer"
    assert set(run["versions"]["items"]) == {"mixer_probe", "torch", "timm", "python"}
    assert "mean=(0.5, 0.5, 0.5)" in run["transform"]


def test_nothing_but_the_run_is_left(model: Model, tmp_path: Path) -> None:
    extract(model, Source(2), out=tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    left = {p.name for p in (tmp_path / "run" / "units").iterdir()}
    assert left == {"run.json", "000000.json"}


# -- interruption ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("gone"), KeyboardInterrupt()])
@pytest.mark.parametrize("fails_at", [0, 1, 6, 13, 22])
@pytest.mark.parametrize("batch_size", [3, 5, 64])
@pytest.mark.usefixtures("small_units")
def test_an_interrupted_run_is_refused_and_resumes_to_the_last_bit(
    model: Model, tmp_path: Path, error: BaseException, fails_at: int, batch_size: int
) -> None:
    source = Source(23)
    whole = extract(model, source, reduce="none", batch_size=batch_size)
    source.fails_at, source.error = fails_at, error
    with pytest.raises(type(error)) as caught:
        extract(model, source, reduce="none", batch_size=batch_size, out=tmp_path / "run")
    assert caught.value is error
    # Batches end with their units of four images.
    cuts = [r for k in range(6) for r in units.Units(23, 4).batches(k, batch_size)]
    done = max((r.stop for r in cuts if r.stop <= fails_at), default=0)
    with pytest.raises(
        StoreError, match=rf"unfinished \({done} of 23 images\); run the same extract again"
    ):
        open_run(tmp_path / "run")
    source.fails_at = None
    finished = extract(model, source, reduce="none", batch_size=batch_size, out=tmp_path / "run")
    assert source.starts[-1] == done
    same(finished, whole)
    same(open_run(tmp_path / "run"), whole)


@pytest.mark.usefixtures("small_units")
def test_a_run_interrupted_again_and_again(model: Model, tmp_path: Path) -> None:
    source = Source(23)
    whole = extract(model, source, reduce="none", batch_size=2)
    for fails_at in (3, 9, 15, 22):
        source.fails_at = fails_at
        with pytest.raises(OSError, match="disk went away"):
            extract(model, source, reduce="none", batch_size=2, out=tmp_path / "run")
    source.fails_at = None
    same(extract(model, source, reduce="none", batch_size=2, out=tmp_path / "run"), whole)


@pytest.mark.usefixtures("small_units")
def test_a_process_that_was_killed_resumes_after_the_last_whole_unit(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody keeps what is in memory: only whole units are there, and the last of these may still
    have been on its way."""
    source = Source(23)
    whole = extract(model, source, reduce="none", batch_size=3)
    source.fails_at = 15
    with monkeypatch.context() as patched:
        patched.setattr(store.RunWriter, "__exit__", lambda *_: None)
        with pytest.raises(OSError, match="disk went away"):
            extract(model, source, reduce="none", batch_size=3, out=tmp_path / "run")
    with pytest.raises(StoreError, match=r"unfinished \((8|12) of 23 images\)"):
        open_run(tmp_path / "run")
    source.fails_at = None
    same(extract(model, source, reduce="none", batch_size=3, out=tmp_path / "run"), whole)


@pytest.mark.usefixtures("small_units")
def test_a_run_may_go_on_with_another_batch_size(model: Model, tmp_path: Path) -> None:
    source = Source(23)
    source.fails_at = 10
    with pytest.raises(OSError, match="disk went away"):
        extract(model, source, reduce="none", batch_size=3, out=tmp_path / "run")
    source.fails_at = None
    found = extract(model, source, reduce="none", batch_size=2, out=tmp_path / "run")
    assert source.starts[-1] == 8
    whole = extract(model, source, reduce="none", batch_size=2)
    for name in whole:
        np.testing.assert_allclose(found[name], whole[name], atol=1e-5)


@pytest.mark.usefixtures("small_units")
def test_counts_of_what_is_not_finite_survive_an_interruption(tmp_path: Path) -> None:
    model = CASES["mixer"].model()
    with torch.no_grad():
        model.module.blocks[0].mlp_channels.fc2.bias[2] = float("inf")
    source = Source(9)
    source.fails_at = 5
    with pytest.raises(OSError, match="disk went away"):
        extract(model, source, "blocks.0", batch_size=2, out=tmp_path / "run")
    source.fails_at = None
    with pytest.warns(NonFiniteWarning, match="9 values"):
        extract(model, source, "blocks.0", batch_size=2, out=tmp_path / "run")


@pytest.mark.usefixtures("small_units")
def test_a_run_that_only_lacks_its_end_is_finished(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the last image and before the last word."""
    source = Source(8)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store, "digest_of", stop)
        with pytest.raises(KeyboardInterrupt):
            extract(model, source, batch_size=4, out=tmp_path / "run")
    with pytest.raises(StoreError, match="unfinished"):
        open_run(tmp_path / "run")
    given = source.given
    same(
        extract(model, source, batch_size=4, out=tmp_path / "run"),
        extract(model, source, batch_size=4),
    )
    assert given == 2
    assert source.starts == [0, 0]  # nothing was left to run for the second


def test_a_finished_run_is_returned_without_running_the_model(model: Model, tmp_path: Path) -> None:
    source = Source(5)
    first = extract(model, source, out=tmp_path / "run")
    given = source.given
    again = extract(model, source, batch_size=2, out=tmp_path / "run")
    assert source.given == given
    same(first, again)


# -- a full disk -----------------------------------------------------------------------------------


def _full_after(writes: int) -> Callable[..., None]:
    write = zarr.Array.__setitem__
    left = [writes]

    def limited(self: Any, *arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        write(self, *arguments)

    return limited


@pytest.mark.usefixtures("small_units")
def test_a_full_disk_keeps_what_was_written(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(23)
    whole = extract(model, source, "blocks", reduce="none", batch_size=4)
    with monkeypatch.context() as patched:
        # Ids, keys, labels, then four arrays a unit: two blocks and their prefix tokens.
        patched.setattr(zarr.Array, "__setitem__", _full_after(3 + 3 * 4 + 1))
        with pytest.raises(
            StoreError, match=r"No space left on device.*12 of 23 images are safe: free disk space"
        ) as caught:
            extract(model, source, "blocks", reduce="none", batch_size=4, out=tmp_path / "run")
    assert isinstance(caught.value.__cause__, OSError)
    # This unit and the next, which passed meanwhile, were kept, on a disk that is full for arrays
    # only.
    with pytest.raises(StoreError, match=r"unfinished \(20 of 23 images\)"):
        open_run(tmp_path / "run")
    assert not any(m._forward_hooks for m in model.module.modules())
    resumed = extract(model, source, "blocks", reduce="none", batch_size=4, out=tmp_path / "run")
    assert source.starts[-1] == 20
    same(resumed, whole)


def test_a_disk_that_is_full_from_the_start(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr.Array, "__setitem__", _full_after(0))
    with pytest.raises(
        StoreError, match=r"could not write to .*run \(No space left on device\); 0 of 3"
    ):
        extract(model, Source(3), out=tmp_path / "run")


def test_a_place_that_cannot_be_written_to(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot write"):
        extract(model, Source(3), out=tmp_path / "file" / "run")


# -- places that are taken -------------------------------------------------------------------------


def test_another_run_in_the_place_is_refused(model: Model, tmp_path: Path) -> None:
    extract(model, Source(3), out=tmp_path / "run")
    other = CASES["dinov2-registers"].model()
    with torch.no_grad():
        other.module.head.bias[0] += 1
    attempts: list[tuple[Model, Source, dict[str, Any]]] = [
        (other, Source(3), {}),
        (model, Source(4), {}),
        (model, Source(3), {"layers": "all"}),
        (model, Source(3), {"reduce": "none"}),
        (model, Source(3), {"autocast": "bfloat16"}),
    ]
    for used, source, settings in attempts:
        with pytest.raises(StoreError, match=r"already holds another run.*choose another place"):
            extract(used, source, out=tmp_path / "run", **settings)
        assert source.given == 0
    same(open_run(tmp_path / "run"), extract(model, Source(3)))


def test_another_unfinished_run_is_not_thrown_away(model: Model, tmp_path: Path) -> None:
    source = Source(6)
    source.fails_at = 4
    with pytest.raises(OSError, match="disk went away"):
        extract(model, source, batch_size=2, out=tmp_path / "run")
    with pytest.raises(StoreError, match="another unfinished run"):
        extract(model, Source(7), batch_size=2, out=tmp_path / "run")
    source.fails_at = None
    extract(model, source, batch_size=2, out=tmp_path / "run")
    assert source.starts[-1] == 4


def test_another_run_of_which_nothing_is_finished_is_replaced(model: Model, tmp_path: Path) -> None:
    source = Source(6)
    source.fails_at = 0
    with pytest.raises(OSError, match="disk went away"):
        extract(model, source, batch_size=2, out=tmp_path / "run")
    found = extract(model, Source(7), "blocks.0", batch_size=2, out=tmp_path / "run")
    same(open_run(tmp_path / "run"), found)
    assert list(zarr.open_group(tmp_path / "run").array_keys()) == sorted(
        zarr.open_group(tmp_path / "run", use_consolidated=False).array_keys()
    )


def test_a_foreign_folder_is_refused_and_left_alone(model: Model, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="already exists"):
        extract(model, Source(3), out=tmp_path / "run")
    with pytest.raises(StoreError, match="already exists"):
        extract(model, Source(3), out=tmp_path / "run", verify=True)
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


def test_of_another_run_nothing_is_verified(model: Model, tmp_path: Path) -> None:
    extract(model, Source(3), out=tmp_path / "run")
    (tmp_path / "run" / "units" / "run.json").write_text("damaged")
    with pytest.raises(StoreError, match="already holds another run"):
        extract(model, Source(4), out=tmp_path / "run", verify=True)
    # What a finished run no longer needs is written again.
    source = Source(3)
    extract(model, source, out=tmp_path / "run", verify=True)
    assert source.given == 0
    assert (tmp_path / "run" / "units" / "run.json").read_text().startswith("{")


def test_a_file_in_the_place_is_refused(model: Model, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StoreError, match="already exists and is not a resumable extraction"):
        extract(model, Source(3), out=tmp_path / "run")


def test_what_is_no_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run at .*give the folder that extract wrote"):
        open_run(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="no run at"):
        open_run(tmp_path / "empty")
    zarr.open_group(tmp_path / "other", mode="w")
    with pytest.raises(StoreError, match="no run of this version"):
        open_run(tmp_path / "other")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("what", ["metadata", "layer", "chunk", "labels", "run", "note"])
def test_a_damaged_run_is_refused(model: Model, tmp_path: Path, what: str) -> None:
    run = tmp_path / "run"
    extract(model, Source(9), "blocks", reduce="none", out=run)
    if what == "metadata":
        _cut(run / "zarr.json")
    elif what == "layer":
        shutil.rmtree(run / "blocks.1")
        with warnings.catch_warnings(action="ignore"):
            zarr.consolidate_metadata(run)
    elif what == "chunk":
        next(p for p in (run / "blocks.0" / "c").rglob("*") if p.is_file()).unlink()
    elif what == "labels":
        shutil.rmtree(run / "label" / "c")
    elif what == "note":
        _cut(run / "zarr.json")
        _cut(run / "units" / "run.json")
    else:
        group = zarr.open_group(run, mode="r+")
        group.attrs["run"] = {"$type": "RunRecord"}
    with pytest.raises(StoreError, match=r"damaged|no run at"):
        open_run(run)
    if what == "note":  # nothing says any more what it is
        with pytest.raises(StoreError, match="damaged"):
            extract(model, Source(9), "blocks", reduce="none", out=run, verify=True)
        return
    if what != "metadata":  # which is known, and written again
        with pytest.raises(StoreError, match=r"already exists: .*with verify=True"):
            extract(model, Source(9), "blocks", reduce="none", out=run)
    source = Source(9)
    repaired = extract(model, source, "blocks", reduce="none", out=run, verify=True)
    same(repaired, extract(model, Source(9), "blocks", reduce="none"))
    assert source.given == {"layer": 3, "chunk": 1}.get(what, 0)


@pytest.mark.usefixtures("small_units")
def test_a_flipped_byte_is_named_and_its_unit_alone_is_written_anew(
    model: Model, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    expected = extract(model, Source(14), out=run)["blocks.1"].copy()
    shard = run / "blocks.1" / "c" / "2" / "0"
    content = bytearray(shard.read_bytes())
    content[7] ^= 1
    shard.write_bytes(content)
    damaged = open_run(run)
    np.testing.assert_array_equal(damaged.rows("blocks.1", slice(0, 8)), expected[:8])
    with pytest.raises(StoreError) as caught:
        damaged.rows("blocks.1", slice(7, 10))
    assert str(caught.value).startswith(f"the run at {run} is damaged (blocks.1/c/2/0, of unit 2: ")
    assert str(caught.value).endswith(
        "; run the same extract again with verify=True (--verify), which rewrites the damaged parts"
    )
    source = Source(14)
    repaired = extract(model, source, out=run, verify=True)
    assert source.starts == [8]
    assert source.given == 1
    np.testing.assert_array_equal(repaired["blocks.1"], expected)
    source = Source(14)
    extract(model, source, out=run, verify=True)
    assert source.given == 0


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_units")
def test_no_more_than_a_unit_waits_in_memory(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = []
    write = store.RunWriter.write

    def watched(self: store.RunWriter, start: int, arrays: Any) -> None:
        write(self, start, arrays)
        waiting.append(sum(unit.filled for unit in self._now.values()))

    monkeypatch.setattr(store.RunWriter, "write", watched)
    extract(model, Source(40), reduce="none", batch_size=3, out=tmp_path / "run")
    assert max(waiting) < 4


def test_units_and_chunks_are_powers_of_two_within_their_budgets() -> None:
    """A unit is at most half a gigabyte, a chunk 16 MiB; large sets have a few hundred units."""
    of = units.Units.of
    assert of(50_000, 36_864) == units.Units(50_000, 1024)
    assert of(1_281_167, 36_864) == units.Units(1_281_167, 4096)
    assert of(10**9, 36_864) == units.Units(10**9, 8192)
    assert of(50_000, 12 * 196 * 768 * 4) == units.Units(50_000, 64)
    assert of(10, 10**10) == units.Units(10, 1)
    assert [list(of(2500, 8).batches(k, 1000)) for k in range(3)] == [
        [range(1000), range(1000, 1024)],
        [range(1024, 2024), range(2024, 2048)],
        [range(2048, 2500)],
    ]
    model = CASES["mixer"].model()
    record = extract(model, noise(1), "blocks", reduce="none").record
    wide = model.layer("blocks.0")
    for positions, channels, expected in ((16, 24, 1024), (196, 768, 16), (10**6, 768, 1)):
        layer = replace(wide, positions=positions, channels=channels)
        changed = replace(record, layers=(layer,))
        assert (
            run_files.chunk_rows(changed, of(50_000, run_files.bytes_per_image(changed)))
            == expected
        )

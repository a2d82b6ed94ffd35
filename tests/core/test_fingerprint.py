"""Identity is content: equal names are no equal images, and what is equal is the same wherever it
lies."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mixer_probe as mp
from mixer_probe.capture import TensorImages, extract
from mixer_probe.core import fingerprint
from mixer_probe.core.errors import ImagesError, MeasureError, StoreError
from mixer_probe.core.fingerprint import (
    apart,
    check_apart,
    check_same_images,
    folder_state,
    learn_keys,
)
from mixer_probe.images import Images, from_arrays, labelled
from mixer_probe.images.distortions import LowPass, PatchShuffle, distort
from mixer_probe.models import Model
from mixer_probe.models.fingerprint import network_fingerprint
from mixer_probe.study.result_cache import identity
from tests.networks import CASES, as_model

N = 6


def pixels(seed: int = 0, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def folder(path: Path, seed: int = 0, names: str = "abc") -> Path:
    """Two classes of three pictures; the names do not depend on the content."""
    for i, picture in enumerate(pixels(seed)):
        file = path / ("cat" if i < 3 else "dog") / f"{names[i % 3]}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    return path


@pytest.fixture
def model() -> Model:
    return CASES["mixer"].model()


# -- images ----------------------------------------------------------------------------------------


def test_equal_names_are_no_equal_images_and_equal_pictures_are_wherever_they_lie(
    tmp_path: Path,
) -> None:
    one = mp.load_images(folder(tmp_path / "one"))
    other = mp.load_images(folder(tmp_path / "other", seed=1))
    copy = mp.load_images(folder(tmp_path / "copy", names="xyz"))
    assert one.ids == other.ids
    assert one.ids != copy.ids
    assert not set(one.keys) & set(other.keys)
    assert one.fingerprint != other.fingerprint
    assert one.keys == copy.keys
    assert one.fingerprint == copy.fingerprint == one.record.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images.subset([1, 0, *range(2, N)]),
        lambda images: images.subset(range(N - 1)),
        lambda images: replace(images, labels=images.labels[::-1].copy()),
        lambda images: replace(images, labels=None),
        lambda images: replace(images, class_names=("dog", "cat")),
        lambda images: replace(images, split="val"),
        lambda images: distort(images, LowPass(0.1)),
    ],
    ids=["order", "fewer", "labels", "no labels", "classes", "split", "distortion"],
)
def test_what_a_fingerprint_is_over(tmp_path: Path, change: Callable[[Images], Any]) -> None:
    images = mp.load_images(folder(tmp_path))
    assert change(images).record.fingerprint != images.record.fingerprint
    assert change(images).record.fingerprint == change(images).record.fingerprint


def test_a_file_is_read_again_when_it_changes_and_on_demand(tmp_path: Path) -> None:
    images = mp.load_images(folder(tmp_path))
    file = Path(images.reader.where(0))
    long_ago = 10**18
    os.utime(file, ns=(long_ago, long_ago))
    first = images.keys
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(long_ago, long_ago))  # Same size, same time of change.
    assert images.keys[0] == images.verify()[0] != first[0]
    assert images.keys[1:] == first[1:]
    file.unlink()
    with pytest.raises(ImagesError, match=r"cannot read .*a\.png: the file is gone"):
        images.keys  # noqa: B018


def test_files_of_many_images_are_looked_at_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    """For ten times as long as looking took; an extraction looks at each batch."""
    clock = [0.0]
    monkeypatch.setattr(labelled, "_MANY_FILES", 3)
    images = mp.load_images(folder(tmp_path))
    monkeypatch.setattr(
        labelled.time, "monotonic", lambda: clock.append(clock[-1] + 1) or clock[-1]
    )
    first, record = images.keys, images.record
    file = Path(images.reader.where(5))
    file.write_bytes(file.read_bytes() + b" ")
    assert images.keys is first
    assert images.record == record
    with pytest.raises(ImagesError, match="have changed since the run began"):
        extract(model, images, batch_size=3)
    clock.append(100.0)
    assert images.keys[5] != first[5]
    assert images.keys[:5] == first[:5]
    assert images.record != record
    file.write_bytes(file.read_bytes() + b" ")
    assert images.verify()[5] == images.keys[5]


def test_what_another_process_read_counts_as_long_as_files_are_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = mp.load_images(folder(tmp_path))
    monkeypatch.setattr(fingerprint, "_SETTLED_NS", -(10**18))
    keys, known = images.keys, images.known_keys()
    assert len(known) == N
    assert from_arrays(pixels()).known_keys() == {}
    file = Path(images.reader.where(2))
    file.write_bytes(file.read_bytes() + b" ")
    read = []
    digest = fingerprint.hashlib.file_digest
    monkeypatch.setattr(
        fingerprint.hashlib, "file_digest", lambda f, kind: read.append(f.name) or digest(f, kind)
    )
    monkeypatch.setattr(fingerprint, "_known_files", {})
    learn_keys(images.subset([0]).known_keys() | dict(known))
    again = pickle.loads(pickle.dumps(images)).keys
    assert read == [str(file)]
    assert [a == b for a, b in zip(again, keys, strict=True)] == [True, True, False, *[True] * 3]
    monkeypatch.setattr(fingerprint, "_MOST_FILES", 4)
    learn_keys(known)
    assert len(fingerprint._known_files) == 4


def test_parts_of_files_are_known_by_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    parts = [fingerprint.part_of_file(str(tmp_path / "a"), *part) for part in ((2, 3), (5, 5))]
    assert fingerprint.file_keys(parts) == [
        fingerprint.bytes_key(content) for content in (b"234", b"56789")
    ]
    assert fingerprint.read_part(parts[1], 2) == b"56"
    (tmp_path / "a").write_bytes(b"01234567")
    with pytest.raises(OSError, match="ends 2 bytes before the image does"):
        fingerprint.file_keys(parts)


def test_images_of_every_kind_are_known_by_their_content() -> None:
    held = from_arrays(pixels())
    assert held.keys == from_arrays(list(pixels()), ids=list("uvwxyz")).keys
    assert held.keys != from_arrays(pixels(1)).keys
    tensor = torch.from_numpy(pixels()).float()
    assert (
        TensorImages(tensor).keys
        == TensorImages(tensor.clone()).keys
        != TensorImages(tensor.double()).keys
    )
    assert len(set(TensorImages(tensor).keys)) == N
    shuffled = distort(held, PatchShuffle(2, seed=0))
    assert shuffled.keys != held.keys
    assert shuffled.keys != distort(held, PatchShuffle(2, seed=1)).keys
    assert shuffled.record.pictures == held.record.pictures
    altered = mp.probing.shifted_images(held)
    assert altered.keys != mp.probing.shifted_images(held, seed=1).keys
    assert altered.subset([4, 2]).keys == (altered.keys[4], altered.keys[2])
    demo = mp.load_images("demo", limit=20)
    assert demo.keys == mp.load_images("demo", limit=20).keys
    assert len(set(demo.keys)) == 20


# -- the same images, and images apart -------------------------------------------------------------


def test_the_same_images_are_told_by_content(tmp_path: Path) -> None:
    one = mp.load_images(folder(tmp_path / "one"))
    check_same_images(one, mp.load_images(folder(tmp_path / "copy", names="xyz")))
    check_same_images(one, distort(one, LowPass(0.1)))
    with pytest.raises(
        MeasureError,
        match=r"^different images: 6 of 6 images differ.* two images named 'cat/a.png'",
    ):
        check_same_images(one, mp.load_images(folder(tmp_path / "other", seed=1)))
    with pytest.raises(
        MeasureError, match=r"^the same images in a different order: 2 of 6 images differ"
    ):
        check_same_images(one, one.subset([1, 0, *range(2, N)]))
    with pytest.raises(MeasureError, match="6 images against 4, of which 2 are in only one set"):
        check_same_images(one, one.subset(range(4)))


def test_sets_apart_are_told_by_content(tmp_path: Path) -> None:
    train, test = (
        mp.load_images(folder(tmp_path / name, seed=s)) for s, name in enumerate(("train", "val"))
    )
    check_apart(train, test)
    check_apart(train, test.subset([0, 0, 1]))
    shutil.copy(train.reader.where(4), test.reader.where(1))
    with pytest.raises(
        ImagesError,
        match=r"^1 test images are also in train, the first is 'cat/b.png' \('dog/b.png' there\)",
    ):
        check_apart(train, test)
    with pytest.raises(ImagesError, match="1 test images"):
        check_apart(distort(train, LowPass(0.1)), test)


def test_the_state_of_a_folder_is_that_of_all_its_files(tmp_path: Path) -> None:
    states = [folder_state(folder(tmp_path / "one"))]
    file, top = tmp_path / "one" / "dog" / "b.png", (tmp_path / "one").stat()
    content = file.read_bytes()
    file.write_bytes(content[::-1])
    states.append(folder_state(tmp_path / "one"))
    file.unlink()
    states.append(folder_state(tmp_path / "one"))
    (tmp_path / "one" / "dog" / "loop").symlink_to(tmp_path / "one")
    states.append(folder_state(tmp_path / "one"))
    assert (tmp_path / "one").stat().st_mtime_ns == top.st_mtime_ns
    assert len(set(states[:3])) == 3
    assert states[2] == states[3]


def test_a_picture_that_a_set_has_twice_is_in_one_part() -> None:
    images = from_arrays(pixels()[[0, 1, 2, 0, 3, 1]])
    assert apart(images.keys, [0, 1, 2], [3, 4]).tolist() == [1, 2]
    check_apart(images.subset(apart(images.keys, [0, 1, 2], [3, 4, 5])), images.subset([3, 4, 5]))


def test_probes_take_folders_of_equal_names_and_refuse_equal_pictures(
    tmp_path: Path, model: Model
) -> None:
    train, test = (
        mp.load_images(folder(tmp_path / name, seed=s)) for s, name in enumerate(("train", "val"))
    )
    fit, hold = extract(model, train), extract(model, test)
    assert mp.linear_probe(fit, hold, l2=1.0).accuracy.shape[0] == len(fit)
    again = extract(model, mp.load_images(folder(tmp_path / "again", names="xyz")))
    with pytest.raises(ImagesError, match="6 test images are also in train"):
        mp.linear_probe(fit, again, l2=1.0)
    with pytest.raises(MeasureError, match="different images"):
        mp.compare(fit, hold, permutations=0, resamples=0)


# -- networks --------------------------------------------------------------------------------------


def _tuned(network: nn.Module) -> None:
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1


def _by_data(network: nn.Module) -> None:
    next(network.parameters()).data.view(-1)[0] += 1


def _by_numpy(network: nn.Module) -> None:
    next(network.parameters()).detach().numpy().reshape(-1)[0] += 1


def _buffer(network: nn.Module) -> None:
    next(network.buffers()).view(-1)[0] += 1


def _set(name: str, value: Any) -> Callable[[nn.Module], None]:
    def change(network: nn.Module) -> None:
        path, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(path), attribute, value)

    return change


def _act(network: nn.Module) -> None:
    network.layer1[0].act1 = nn.GELU()


def _hook(network: nn.Module) -> None:
    network.layer1[0].register_forward_hook(lambda module, args, output: 0 * output)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("resnet18", _tuned),
        ("resnet18", _by_data),
        ("resnet18", _by_numpy),
        ("resnet18", _buffer),
        ("resnet18", _set("bn1.eps", 0.1)),
        ("resnet18", _set("layer2.0.conv1.stride", (1, 1))),
        ("resnet18", _act),
        ("resnet18", _hook),
        ("vit-gap", _set("global_pool", "max")),
        ("vit", _set("blocks.0.attn.scale", 1.0)),
        ("vit", _set("norm", nn.Identity())),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
def test_the_fingerprint_of_a_network_tells_it_as_it_is(
    case: str, change: Callable[[nn.Module], None]
) -> None:
    model = CASES[case].model()
    first = model.fingerprint
    assert first == CASES[case].model().fingerprint
    change(model.module)
    assert model.fingerprint != first
    assert model.record.fingerprint == model.fingerprint


def test_another_preprocessing_is_another_fingerprint() -> None:
    model = CASES["vit"].model()
    assert (
        replace(model, input=replace(model.input, mean=(0.1,) * 3)).fingerprint != model.fingerprint
    )


class _Own(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function


def test_functions_and_classes_of_ones_own_are_told_by_their_code() -> None:
    from mixer_probe.models.fingerprint import network_fingerprint

    def scaled(by: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: by * x

    prints = [
        network_fingerprint(_Own(f))
        for f in (scaled(2.0), scaled(3.0), scaled(2.0), torch.relu, torch.tanh)
    ]
    assert prints[0] == prints[2]
    assert len(set(prints)) == 4
    kinds = [
        type("Same", (nn.Module,), {"forward": f, "__module__": "mine"})
        for f in (lambda s, x: x, lambda s, x: -x)
    ]
    assert network_fingerprint(kinds[0]()) != network_fingerprint(kinds[1]())


@pytest.mark.parametrize(
    "case", ["mixer", "vit", "swin", "eva", "efficientnet", "vit-attention-pooling"]
)
def test_a_pass_changes_no_fingerprint(case: str) -> None:
    model = CASES[case].model()
    first = model.fingerprint
    extract(model, CASES[case].images(2))
    assert model.fingerprint == first
    assert model.to("cpu").fingerprint == first


def test_structure_and_macs_follow_the_network() -> None:
    model = CASES["vit"].model()
    before, macs = [layer.name for layer in model.layers], model.macs
    assert model.structure is model.structure
    model.module.blocks = nn.Sequential(*model.module.blocks[:-1])
    last = f"blocks.{len(model.module.blocks)}"
    assert [layer.name for layer in model.layers] == [
        name for name in before if not name.startswith(last)
    ]
    assert model.macs < macs
    assert model.parameters == sum(p.numel() for p in model.module.parameters())


# -- runs ------------------------------------------------------------------------------------------


def test_a_stored_run_is_of_its_content(tmp_path: Path, model: Model) -> None:
    out = tmp_path / "run.zarr"
    one = mp.load_images(folder(tmp_path / "one"))
    found = extract(model, one, out=out)
    copy = mp.load_images(folder(tmp_path / "copy", names="xyz"))
    again = extract(model, copy, out=out)
    assert (again.ids, again.images.name) == (copy.ids, copy.name)
    for name in found:
        np.testing.assert_array_equal(found[name], again[name])
    assert again.keys == found.keys == one.keys
    others = [
        mp.load_images(folder(tmp_path / "other", seed=1)),
        one.subset([1, 0, *range(2, N)]),
        replace(one, labels=1 - one.labels),  # type: ignore[operator]
        from_arrays(pixels(3)),
        distort(one, LowPass(0.1)),
    ]
    for images in others:
        with pytest.raises(StoreError, match="already holds another run"):
            extract(model, images, out=out)
    folder(tmp_path / "one", seed=2)
    with pytest.raises(StoreError, match="already holds another run"):
        extract(model, one, out=out)


@pytest.mark.parametrize(
    "change", [_tuned, _by_data, _set("norm.eps", 0.5)], ids=["weights", "weights by .data", "eps"]
)
def test_a_changed_network_does_not_get_its_old_run(
    tmp_path: Path, change: Callable[[nn.Module], None]
) -> None:
    model, images = CASES["mixer"].model(), from_arrays(pixels())
    extract(model, images, out=tmp_path / "run.zarr")
    change(model.module)
    with pytest.raises(StoreError, match="already holds another run"):
        extract(model, images, out=tmp_path / "run.zarr")
    assert identity(model) != identity(CASES["mixer"].model())


def test_another_preprocessing_does_not_get_the_run(tmp_path: Path, model: Model) -> None:
    images = from_arrays(pixels())
    extract(model, images, out=tmp_path / "run.zarr")
    other = as_model(CASES["mixer"].network(), mean=(0.1,) * 3)
    with pytest.raises(StoreError, match="already holds another run"):
        extract(other, images, out=tmp_path / "run.zarr")


def test_pictures_replaced_during_a_run_are_noticed(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = mp.load_images(folder(tmp_path / "one"))

    model.structure  # noqa: B018 - traced before
    forward = model.module.stem.forward
    monkeypatch.setattr(
        type(model.module.stem),
        "forward",
        lambda stem, x: [folder(tmp_path / "one", seed=4), forward(x)][1],
    )
    with pytest.raises(ImagesError, match="have changed since the run began"):
        extract(model, images, "head", batch_size=2, out=tmp_path / "run.zarr")
    monkeypatch.undo()
    with pytest.raises(StoreError, match="unfinished"):
        mp.open_run(tmp_path / "run.zarr")
    folder(tmp_path / "one")
    whole = extract(model, images, "head", batch_size=2, out=tmp_path / "run.zarr")
    np.testing.assert_array_equal(
        whole["head"], extract(model, images, "head", batch_size=2)["head"]
    )


def test_steps_of_a_study_belong_to_all_pixels() -> None:
    many = np.repeat(pixels(n=1), 100, axis=0)
    other = many.copy()
    other[37, 0, 0, 0] ^= 1
    assert identity(from_arrays(many)) != identity(from_arrays(other))
    assert identity(from_arrays(many)) == identity(from_arrays(many.copy()))


# -- parts of runs ---------------------------------------------------------------------------------


def test_a_part_of_a_run_is_a_part_of_its_images(tmp_path: Path, model: Model) -> None:
    images = mp.load_images(folder(tmp_path))
    reps = extract(model, images)
    assert reps.labels is not None
    for chosen in ([3, 1], [-1, 0], np.array([4, 4]), reps.labels == 1, list(reps.labels == 1), []):
        part, subset = reps.take(chosen), images.subset(np.asarray(chosen) if len(chosen) else [])
        assert part.images == subset.record
        assert (part.ids, part.keys) == (subset.ids, subset.keys)
    rows = reps.take(reps.labels == 1)
    np.testing.assert_array_equal(rows["blocks.0"], reps["blocks.0"][3:])


@pytest.mark.parametrize(
    "indices",
    [[0.5], [True], np.array([[0]]), ["a"], [6], [-7], np.zeros(5, bool), [None]],
    ids=repr,
)
def test_what_takes_no_images_is_refused(model: Model, indices: Any) -> None:
    with pytest.raises(ImagesError):
        extract(model, from_arrays(pixels())).take(indices)


def test_nobody_writes_into_a_run(tmp_path: Path, model: Model) -> None:
    for out in (None, tmp_path / "run.zarr"):
        reps = extract(model, from_arrays(pixels()), out=out)
        before = reps["blocks.0"].copy()
        for given in (reps["blocks.0"], reps.rows("blocks.0", slice(0, 3))):
            with pytest.raises(ValueError, match="read-only"):
                given[0] = 7
        np.testing.assert_array_equal(reps["blocks.0"], before)


def test_a_network_may_be_made_in_a_function_that_imports() -> None:
    def network(width: int) -> torch.nn.Module:
        from torch import nn

        class Tiny(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Identity()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.pad(self.layer(x), (width, 0))

        return Tiny()

    assert network_fingerprint(network(1)) == network_fingerprint(network(1))
    assert network_fingerprint(network(1)) != network_fingerprint(network(2))

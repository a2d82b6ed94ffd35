"""Weights from files: every shape they come in, every way in which they are broken, and code that must not run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mixer_probe.errors import CheckpointError
from mixer_probe.models import load_model
from mixer_probe.models.weights import read_checkpoint
from tests.networks import CASES, as_model

State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    return CASES["resnet-bottleneck"].network(seed=5).state_dict()


def load(file: Path) -> State:
    model = as_model(CASES["resnet-bottleneck"].network(seed=0), 64, checkpoint=file)
    assert model.weights.trained
    assert model.weights.source == f"file {file.name}"
    return model.module.state_dict()


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- what is read ------------------------------------------------------------------------------------------------------


def test_safetensors(state: State, tmp_path: Path) -> None:
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    assert same(load(tmp_path / "w.safetensors"), state)


def test_safetensors_under_another_name(state: State, tmp_path: Path) -> None:
    safetensors.torch.save_file(state, tmp_path / "w.bin")
    assert same(load(tmp_path / "w.bin"), state)


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files(state: State, tmp_path: Path, legacy: bool) -> None:
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert same(load(tmp_path / "w.pth"), state)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + k: v for k, v in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "arch": "resnet"},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        lambda s: prefixed("module.", s),
        lambda s: {"state_dict": prefixed("module.", s)},
        lambda s: prefixed("_orig_mod.", s),
        lambda s: prefixed("_orig_mod.module.", s),
        lambda s: prefixed("module._orig_mod.", s),
        lambda s: {"state_dict": {"model": s}},
    ],
)
def test_the_wrappers_of_training_scripts(state: State, tmp_path: Path, wrap: Callable[[State], Any]) -> None:
    torch.save(wrap(state), tmp_path / "w.pth")
    assert same(load(tmp_path / "w.pth"), state)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
def test_averaged_weights_come_first(state: State, tmp_path: Path, key: str) -> None:
    raw = {k: torch.zeros_like(v) for k, v in state.items()}
    torch.save({"state_dict": raw, "model": raw, key: state}, tmp_path / "w.pth")
    assert same(load(tmp_path / "w.pth"), state)


def test_half_precision_files_fill_a_float32_network(state: State, tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    safetensors.torch.save_file(half, tmp_path / "w.safetensors")
    loaded = load(tmp_path / "w.safetensors")
    assert same(loaded, {k: v.to(state[k].dtype) for k, v in half.items()})


def test_files_that_do_not_count_batches(state: State, tmp_path: Path) -> None:
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    safetensors.torch.save_file(old, tmp_path / "w.safetensors")
    loaded = load(tmp_path / "w.safetensors")
    assert all(torch.equal(loaded[k], old[k]) for k in old)


def test_the_keys_of_the_original_authors(tmp_path: Path) -> None:
    """timm converts other people's files for its networks; a file given by hand goes the same way."""
    network = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    theirs = {k: v.clone() for k, v in network.state_dict().items()}
    theirs["patch_embed.proj.weight"] = theirs["patch_embed.proj.weight"].flatten(1)
    torch.save(theirs, tmp_path / "w.pth")
    other = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    model = as_model(other, checkpoint=tmp_path / "w.pth")
    assert same(model.module.state_dict(), network.state_dict())


def test_a_checkpoint_for_a_timm_name(tmp_path: Path) -> None:
    network = load_model("mixer_s32_224", pretrained=False, seed=9, num_classes=4, device="cpu")
    safetensors.torch.save_file(network.module.state_dict(), tmp_path / "w.safetensors")
    model = load_model("mixer_s32_224", checkpoint=str(tmp_path / "w.safetensors"), num_classes=4, device="cpu")
    assert model.sha256 == network.sha256
    assert model.name == "mixer_s32_224"


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(file: Path) -> str:
    """The one sentence of the error; nothing of the network is changed."""
    network = CASES["resnet-bottleneck"].network(seed=0)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        as_model(network, 64, checkpoint=file)
    assert same(network.state_dict(), before)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "w.pth") == f"no checkpoint at {tmp_path}/w.pth; give the path of a .safetensors or .pth file"
    assert refused(tmp_path).startswith("no checkpoint at")


@pytest.mark.parametrize("kept", [0, 4, 9, 100, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated_files(state: State, tmp_path: Path, kind: str, kept: float) -> None:
    file = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    content = file.read_bytes()
    file.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    sentence = refused(file)
    assert sentence.startswith(f"checkpoint {file} is truncated or no ")
    assert sentence.endswith("copy or download it again")


@pytest.mark.parametrize(
    "content",
    [b"<!DOCTYPE html><html>404</html>", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 5000, bytes(range(256)) * 20],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_that_are_something_else(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "is truncated or no " in refused(tmp_path / name)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def _save_plainly(content: Any, file: Path) -> None:
    with file.open("wb") as stream:
        pickle.dump(content, stream)


@pytest.mark.parametrize(
    "save",
    [
        torch.save,
        lambda content, file: torch.save(content, file, _use_new_zipfile_serialization=False),
        _save_plainly,
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w"])
def test_pickled_code_is_not_run(state: State, tmp_path: Path, save: Callable[[Any, Path], None], name: str) -> None:
    proof = tmp_path / "proof"
    save({"state_dict": state, "extra": Malicious(proof)}, tmp_path / name)
    assert refused(tmp_path / name) == (
        f"checkpoint {tmp_path / name} holds pickled code, which is refused and was not run; "
        "save its state_dict() with safetensors instead"
    )
    assert not proof.exists()
    with suppress(RuntimeError):
        torch.load(tmp_path / name, weights_only=False)
    assert proof.exists()  # the trap was armed


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    assert "holds pickled code" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(2)], torch.zeros(3), {0: torch.zeros(2)}, None])
def test_files_without_named_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert refused(tmp_path / "w.pth").endswith("holds no named tensors; save the network's state_dict()")


def test_wrong_shapes_name_the_first_three(state: State, tmp_path: Path) -> None:
    wrong = dict(state)
    for key in ("conv1.weight", "layer1.0.conv2.weight", "layer3.0.bn1.bias", "fc.weight", "fc.bias"):
        wrong[key] = torch.zeros(1, 2)
    safetensors.torch.save_file(wrong, tmp_path / "w.safetensors")
    assert refused(tmp_path / "w.safetensors") == (
        f"checkpoint {tmp_path}/w.safetensors is for another network: "
        "'conv1.weight' has shape (1, 2), the network needs (64, 3, 7, 7); "
        "'layer1.0.conv2.weight' has shape (1, 2), the network needs (8, 8, 3, 3); "
        "'layer3.0.bn1.bias' has shape (1, 2), the network needs (16,) and 2 more"
    )


def test_missing_and_unexpected_keys(state: State, tmp_path: Path) -> None:
    wrong = dict(state)
    del wrong["fc.bias"]
    wrong["fc.scale"] = torch.zeros(3)
    safetensors.torch.save_file(wrong, tmp_path / "w.safetensors")
    sentence = refused(tmp_path / "w.safetensors")
    assert sentence.endswith("is for another network: 'fc.bias' is missing; 'fc.scale' is not in the network")


def test_a_file_for_another_class(tmp_path: Path) -> None:
    safetensors.torch.save_file(CASES["vit"].network().state_dict(), tmp_path / "w.safetensors")
    sentence = refused(tmp_path / "w.safetensors")
    assert "is for another network: 'conv1.weight' is missing" in sentence
    assert sentence.count(";") == 2


def test_reading_without_a_network(state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed("module.", state)}, tmp_path / "w.pth")
    assert same(read_checkpoint(str(tmp_path / "w.pth")), state)

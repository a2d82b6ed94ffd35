"""Weights from files: every shape they come in, every way in which they are broken, and code that
must not run."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from timm.utils import CheckpointSaver
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mixer_probe.core.errors import CheckpointError, ModelError
from mixer_probe.models import load_model
from tests.networks import CASES, as_model, noise, randomised

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


# -- what is read ----------------------------------------------------------------------------------


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
def test_the_wrappers_of_training_scripts(
    state: State, tmp_path: Path, wrap: Callable[[State], Any]
) -> None:
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
    """timm converts other people's files for its networks; a file given by hand goes the same
    way."""
    network = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3
    )
    theirs = {k: v.clone() for k, v in network.state_dict().items()}
    theirs["patch_embed.proj.weight"] = theirs["patch_embed.proj.weight"].flatten(1)
    torch.save(theirs, tmp_path / "w.pth")
    other = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3
    )
    model = as_model(other, checkpoint=tmp_path / "w.pth")
    assert same(model.module.state_dict(), network.state_dict())


def test_a_checkpoint_for_a_timm_name(tmp_path: Path) -> None:
    network = load_model("mixer_s32_224", pretrained=False, seed=9, num_classes=4, device="cpu")
    safetensors.torch.save_file(network.module.state_dict(), tmp_path / "w.safetensors")
    model = load_model(
        "mixer_s32_224", checkpoint=str(tmp_path / "w.safetensors"), num_classes=4, device="cpu"
    )
    assert model.fingerprint == network.fingerprint
    assert model.name == "mixer_s32_224"


# -- what is refused -------------------------------------------------------------------------------


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
    assert (
        refused(tmp_path / "w.pth")
        == f"no checkpoint at {tmp_path}/w.pth; give the path of a .safetensors, .pth or .npz file"
    )
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
    [
        b"<!DOCTYPE html><html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\0" * 5000,
        bytes(range(256)) * 20,
    ],
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
def test_pickled_code_is_not_run(
    state: State, tmp_path: Path, save: Callable[[Any, Path], None], name: str
) -> None:
    proof = tmp_path / "proof"
    save({"state_dict": state, "extra": Malicious(proof)}, tmp_path / name)
    named = "" if save is _save_plainly else " (posix.mkdir)"
    assert refused(tmp_path / name) == (
        f"checkpoint {tmp_path / name} holds pickled code{named}, which is refused and was not "
        "run; save its state_dict() with safetensors instead"
    )
    assert not proof.exists()
    with suppress(RuntimeError):
        torch.load(tmp_path / name, weights_only=False)
    assert proof.exists()  # the trap was armed


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    assert "holds pickled code" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, [torch.zeros(2)], torch.zeros(3), {0: torch.zeros(2)}, None]
)
def test_files_without_named_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert refused(tmp_path / "w.pth").endswith(
        "holds no named tensors; save the network's state_dict()"
    )


def test_wrong_shapes_name_the_first_three(state: State, tmp_path: Path) -> None:
    wrong = dict(state)
    for key in (
        "conv1.weight",
        "layer1.0.conv2.weight",
        "layer3.0.bn1.bias",
        "fc.weight",
        "fc.bias",
    ):
        wrong[key] = torch.zeros(1, 2)
    safetensors.torch.save_file(wrong, tmp_path / "w.safetensors")
    assert refused(tmp_path / "w.safetensors").startswith(
        f"checkpoint {tmp_path}/w.safetensors does not fit ResNet: "
        "'conv1.weight' has shape (1, 2), the network needs (64, 3, 7, 7); "
        "'layer1.0.conv2.weight' has shape (1, 2), the network needs (8, 8, 3, 3); "
        "'layer3.0.bn1.bias' has shape (1, 2), the network needs (16,) and 2 more (in the file: "
    )


def test_missing_and_unexpected_keys(state: State, tmp_path: Path) -> None:
    wrong = dict(state)
    del wrong["fc.bias"]
    wrong["fc.scale"] = torch.zeros(3)
    safetensors.torch.save_file(wrong, tmp_path / "w.safetensors")
    sentence = refused(tmp_path / "w.safetensors")
    assert (
        "does not fit ResNet: 'fc.bias' is missing; 'fc.scale' is not in the network (in the file: "
        in sentence
    )


def test_a_file_for_another_class(tmp_path: Path) -> None:
    safetensors.torch.save_file(CASES["vit"].network().state_dict(), tmp_path / "w.safetensors")
    sentence = refused(tmp_path / "w.safetensors")
    assert "does not fit ResNet: 'conv1.weight' is missing" in sentence
    assert sentence.count(";") == 3
    assert sentence.endswith(")")


# -- as training code writes them ------------------------------------------------------------------


def small_vit(seed: int = 5, **options: Any) -> VisionTransformer:
    sizes = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 5,
    }
    return randomised(VisionTransformer(**{**sizes, **options}), seed)  # type: ignore[return-value]


def small_mixer(seed: int = 5, **options: Any) -> MlpMixer:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_blocks": 2, "num_classes": 5}
    return randomised(MlpMixer(**{**sizes, **options}), seed)  # type: ignore[return-value]


def noted(network: nn.Module, file: Path, expected: nn.Module) -> str:
    """The note on the weights of a file, which are those of `expected`."""
    model = as_model(network, checkpoint=file)
    assert same(model.module.state_dict(), expected.state_dict())
    return model.weights.note


def timms_train_script(network: nn.Module, folder: Path) -> Path:
    """What timm's train.py keeps: weights, their average, optimiser, AMP scaler, its arguments and
    a measure in numpy's type."""
    ema = ModelEmaV3(small_vit(6))
    arguments = argparse.Namespace(
        lr=np.float64(0.1), model="vit", img_size=None, opt_betas=[0.9], output=Path("out")
    )
    optimizer = torch.optim.AdamW(network.parameters())
    network(noise(1)).sum().backward()
    optimizer.step()
    network.load_state_dict(small_vit().state_dict())
    saver = CheckpointSaver(
        network, optimizer, arguments, ema, checkpoint_dir=str(folder), recovery_dir=str(folder)
    )
    saver.save_checkpoint(3, metric=np.float32(71.5))
    return folder / "last.pth.tar"


def stochastic_weight_averaging(network: nn.Module, folder: Path) -> Path:
    averaged = AveragedModel(network)
    averaged.update_parameters(network)
    torch.save(averaged.state_dict(), folder / "w.pth")
    return folder / "w.pth"


def compiled(network: nn.Module, folder: Path) -> Path:
    torch.save(torch.compile(nn.DataParallel(network)).state_dict(), folder / "w.pth")
    return folder / "w.pth"


def compiled_blocks(network: nn.Module, folder: Path) -> Path:
    network.blocks[0] = torch.compile(network.blocks[0])
    network.blocks[1].mlp = nn.DataParallel(network.blocks[1].mlp)
    torch.save({"net": network.state_dict()}, folder / "w.pth")
    return folder / "w.pth"


def saved_as(layout: Callable[[State], Any]) -> Callable[[nn.Module, Path], Path]:
    def save(network: nn.Module, folder: Path) -> Path:
        torch.save(layout(dict(network.state_dict())), folder / "w.pth")
        return folder / "w.pth"

    return save


def zeros(state: State) -> State:
    return {key: torch.zeros_like(value) for key, value in state.items()}


def lightning(state: State) -> Any:
    weights = prefixed("model._orig_mod.", state) | {
        "loss.weight": torch.ones(5),
        "accuracy.total": torch.zeros(1),
    }
    callbacks = {
        "ModelCheckpoint{'monitor': None}": {"best_model_score": torch.ones(()), "dirpath": "runs"}
    }
    hyper = {"lr": 0.1, "folder": Path("/data")}
    return {
        "epoch": 1,
        "state_dict": weights,
        "callbacks": callbacks,
        "hyper_parameters": hyper,
        "loops": {"fit": {"n": 1}},
    }


def dino(state: State) -> Any:
    heads = {"head.mlp.0.weight": torch.zeros(3, 16), "head.last_layer.weight_g": torch.zeros(3, 1)}
    teacher = prefixed("backbone.", state) | heads
    return {
        "student": prefixed("module.", prefixed("backbone.", zeros(state)) | heads),
        "teacher": teacher,
        "epoch": 9,
    }


LAYOUTS: dict[str, tuple[Callable[[nn.Module, Path], Path], str]] = {
    "stochastic weight averaging": (stochastic_weight_averaging, "Left out: 'n_averaged'."),
    "compiled": (compiled, ""),
    "compiled blocks": (compiled_blocks, ""),
    "model_state_dict": (
        saved_as(lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {0: s}}}),
        "",
    ),
    "net": (saved_as(lambda s: {"net": prefixed("module.", s), "acc": 94.2}), ""),
    "any name": (
        saved_as(lambda s: {"run": {"best": {"weights": prefixed("my.encoder.", s)}}}),
        "",
    ),
    "params_ema": (
        saved_as(lambda s: {"params": zeros(s), "params_ema": s}),
        "The weights are those of 'params_ema', where 'params' would fit too.",
    ),
    "ema": (
        saved_as(lambda s: {"model": zeros(s), "ema": {"module": s, "decay": 0.9}}),
        "The weights are those of 'ema.module', where 'model' would fit too.",
    ),
    "lightning": (saved_as(lightning), "Left out: 'loss.weight', 'accuracy.total'."),
    "a loss beside": (
        saved_as(lambda s: {**s, "criterion.weight": torch.ones(5)}),
        "Left out: 'criterion.weight'.",
    ),
    "dino": (
        saved_as(dino),
        "The weights are those of 'teacher.backbone', where 'student.module.backbone' would fit "
        "too. Left out: 'head.mlp.0.weight', 'head.last_layer.weight_g'.",
    ),
    "a student and a teacher": (
        saved_as(
            lambda s: {"state_dict": prefixed("student.", zeros(s)) | prefixed("teacher.", s)}
        ),
        "The weights are those of 'state_dict.teacher', where 'state_dict.student' would fit too. "
        "Left out: 'student.cls_token', 'student.pos_embed', 'student.patch_embed.proj.weight' and "
        "29 more.",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_in_what_is_around_them(layout: str, tmp_path: Path) -> None:
    save, note = LAYOUTS[layout]
    assert noted(small_vit(0), save(small_vit(), tmp_path), small_vit()) == note


def test_files_of_timms_train_script(tmp_path: Path) -> None:
    file = timms_train_script(small_vit(), tmp_path)
    note = noted(small_vit(0), file, small_vit(6))
    assert note == "The weights are those of 'state_dict_ema', where 'state_dict' would fit too."


def test_a_file_of_a_wrapped_network_for_a_wrapped_network(tmp_path: Path) -> None:
    file = compiled(small_vit(), tmp_path)
    assert noted(AveragedModel(small_vit(0)), file, small_vit()) == "Taken out of AveragedModel."


def test_conversions_of_timm_are_told(tmp_path: Path) -> None:
    state = prefixed("module.encoder.", small_vit().state_dict())
    state["module.encoder.patch_embed.proj.weight"] = state[
        "module.encoder.patch_embed.proj.weight"
    ].flatten(1)
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    assert (
        noted(small_vit(0), tmp_path / "w.pth", small_vit())
        == "They were converted by timm's checkpoint_filter_fn."
    )


# -- Google's arrays -------------------------------------------------------------------------------


def flax_mixer(network: MlpMixer) -> dict[str, np.ndarray]:
    """As google-research/vision_transformer names and turns the arrays of its Mixers."""
    own = {key: value.numpy() for key, value in network.state_dict().items()}
    found = {
        "stem/kernel": own["stem.proj.weight"].transpose(2, 3, 1, 0),
        "stem/bias": own["stem.proj.bias"],
    }
    found |= {
        "pre_head_layer_norm/scale": own["norm.weight"],
        "pre_head_layer_norm/bias": own["norm.bias"],
    }
    found |= {"head/kernel": own["head.weight"].T, "head/bias": own["head.bias"]}
    for i in range(len(network.blocks)):
        for k in (0, 1):
            here = f"MixerBlock_{i}"
            found[f"{here}/LayerNorm_{k}/scale"] = own[f"blocks.{i}.norm{k + 1}.weight"]
            found[f"{here}/LayerNorm_{k}/bias"] = own[f"blocks.{i}.norm{k + 1}.bias"]
            for theirs, ours in (
                ("token_mixing", "mlp_tokens"),
                ("channel_mixing", "mlp_channels"),
            ):
                found[f"{here}/{theirs}/Dense_{k}/kernel"] = own[
                    f"blocks.{i}.{ours}.fc{k + 1}.weight"
                ].T
                found[f"{here}/{theirs}/Dense_{k}/bias"] = own[f"blocks.{i}.{ours}.fc{k + 1}.bias"]
    return found


def flax_vit(network: VisionTransformer) -> dict[str, np.ndarray]:
    """As the same repository does those of its ViTs: attention as [in, head, channel] and [head,
    channel, out]."""
    own = {key: value.numpy() for key, value in network.state_dict().items()}
    found = {
        "embedding/kernel": own["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": own["patch_embed.proj.bias"],
    }
    found |= {"cls": own["cls_token"], "Transformer/posembed_input/pos_embedding": own["pos_embed"]}
    found |= {
        "Transformer/encoder_norm/scale": own["norm.weight"],
        "Transformer/encoder_norm/bias": own["norm.bias"],
    }
    found |= {"head/kernel": own["head.weight"].T, "head/bias": own["head.bias"]}
    for i in range(len(network.blocks)):
        theirs, ours = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        for part, weight, bias in zip(
            ("query", "key", "value"),
            np.split(own[f"{ours}.attn.qkv.weight"], 3),
            np.split(own[f"{ours}.attn.qkv.bias"], 3),
            strict=True,
        ):
            found[f"{attention}/{part}/kernel"] = weight.T.reshape(16, 2, 8)
            found[f"{attention}/{part}/bias"] = bias.reshape(2, 8)
        found[f"{attention}/out/kernel"] = own[f"{ours}.attn.proj.weight"].T.reshape(2, 8, 16)
        found[f"{attention}/out/bias"] = own[f"{ours}.attn.proj.bias"]
        for k, norm in ((0, "norm1"), (2, "norm2")):
            found[f"{theirs}/LayerNorm_{k}/scale"] = own[f"{ours}.{norm}.weight"]
            found[f"{theirs}/LayerNorm_{k}/bias"] = own[f"{ours}.{norm}.bias"]
        for k in (0, 1):
            found[f"{theirs}/MlpBlock_3/Dense_{k}/kernel"] = own[f"{ours}.mlp.fc{k + 1}.weight"].T
            found[f"{theirs}/MlpBlock_3/Dense_{k}/bias"] = own[f"{ours}.mlp.fc{k + 1}.bias"]
    return found


@pytest.mark.parametrize(("make", "arrays"), [(small_mixer, flax_mixer), (small_vit, flax_vit)])
@pytest.mark.parametrize("name", ["w.npz", "w"])
def test_googles_arrays(make: Any, arrays: Any, name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as stream:
        np.savez(stream, **arrays(make()))
    assert noted(make(0), tmp_path / name, make()) == ""


@pytest.mark.parametrize(
    ("network", "arrays", "message"),
    [
        (
            small_mixer(num_blocks=1),
            flax_mixer(small_mixer()),
            "does not fit MlpMixer: 'blocks.1.norm1.weight' is not in the network",
        ),
        (
            small_mixer(num_blocks=3),
            flax_mixer(small_mixer()),
            "does not fit MlpMixer: 'blocks.2.norm1.weight' is missing",
        ),
        (
            small_vit(depth=1),
            flax_vit(small_vit()),
            "does not fit VisionTransformer: it has 2 blocks and the network 1",
        ),
        (
            small_vit(depth=3),
            flax_vit(small_vit()),
            "does not fit VisionTransformer: it has 2 blocks and the network 3",
        ),
        (
            small_vit(num_classes=4),
            flax_vit(small_vit()),
            "does not fit VisionTransformer: 'head.weight' is missing",
        ),
        (
            small_vit(embed_dim=32),
            flax_vit(small_vit()),
            "does not fit VisionTransformer: timm's conversion of its arrays ended",
        ),
        (
            small_vit(),
            flax_mixer(small_mixer()),
            "does not fit VisionTransformer: timm's conversion of its arrays ended with",
        ),
        (
            small_mixer(),
            flax_vit(small_vit()),
            "holds arrays .* and for MlpMixer there is no conversion of those",
        ),
        (
            small_mixer(),
            {"a": np.array(["text"], dtype=object)},
            "holds pickled code, which is refused and was not run",
        ),
    ],
)
def test_arrays_that_do_not_fit(
    network: nn.Module, arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "w.npz", **arrays)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        as_model(network, checkpoint=tmp_path / "w.npz")
    assert same(network.state_dict(), before)


# -- values ----------------------------------------------------------------------------------------


def with_infinity(value: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(value.numel()).view(value.shape) == 7, torch.inf, value)


VALUES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "int8": (
        lambda v: v.to(torch.int8),
        "'fc.weight' in checkpoint .* is int8, and weights are dense tensors of float32,",
    ),
    "uint8": (lambda v: v.to(torch.uint8), "is uint8, and weights are"),
    "int64": (lambda v: v.long(), "is int64, and weights are"),
    "bool": (lambda v: v > 0, "is bool, and weights are"),
    "complex": (lambda v: v.to(torch.complex64), "is complex64, and weights are"),
    "float8": (lambda v: v.to(torch.float8_e4m3fn), "is float8_e4m3fn, and weights are"),
    "sparse": (lambda v: v.to_sparse(), r"is sparse \(sparse_coo\), and weights are"),
    "meta": (
        lambda v: v.to("meta"),
        r"is without values \(on torch's meta device\), and weights are",
    ),
    "quantised": (
        lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
        "is quantised, and weights are",
    ),
    "NaN": (
        lambda v: v * torch.nan,
        "1 of .* tensors in checkpoint .* have values that are NaN or infinite, the first of them "
        "'fc.we",
    ),
    "infinity": (with_infinity, "have values that are NaN or infinite"),
    "too large for float32": (lambda v: v.double() * 1e300, "have values that are NaN or infinite"),
}


@pytest.mark.filterwarnings("ignore:.*quant")
@pytest.mark.parametrize("kind", VALUES)
def test_weights_are_finite_dense_numbers(state: State, tmp_path: Path, kind: str) -> None:
    change, message = VALUES[kind]
    torch.save({**state, "fc.weight": change(state["fc.weight"])}, tmp_path / "w.pth")
    assert re.search(message, refused(tmp_path / "w.pth"))


def test_integers_for_a_buffer_of_integers(tmp_path: Path) -> None:
    network = small_vit()
    network.register_buffer("order", torch.arange(3))
    torch.save({**network.state_dict(), "order": torch.tensor([2.5, 1, 0])}, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError,
        match=r"'order' in checkpoint .* is float32, and weights are dense tensors of int64",
    ):
        as_model(network, checkpoint=tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_types_are_converted(state: State, tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()},
        tmp_path / "w.pth",
    )
    assert same(load(tmp_path / "w.pth"), {k: v.to(dtype).to(v.dtype) for k, v in state.items()})


# -- partly fitting --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rename", "hint"),
    [
        (
            lambda k: k.replace("blocks.", "transformer.layers."),
            "24 would fit with 'transformer.layers' renamed 'blocks'",
        ),
        (lambda k: k.replace(".mlp.", ".ffn."), "; 8 would fit with 'ffn' renamed 'mlp'"),
        (
            lambda k: k.replace(".attn.qkv.", ".attn.to_qkv."),
            "; 4 would fit with 'to_qkv' renamed 'qkv'",
        ),
    ],
)
def test_the_likely_renaming_is_told(
    rename: Callable[[str], str], hint: str, tmp_path: Path
) -> None:
    torch.save(
        {"model": {rename(k): v for k, v in small_vit().state_dict().items()}}, tmp_path / "w.pth"
    )
    with pytest.raises(CheckpointError) as caught:
        as_model(small_vit(0), checkpoint=tmp_path / "w.pth")
    sentence = str(caught.value)
    assert hint in sentence
    assert (
        "in the file: 'cls_token', 'pos_embed', 'patch_embed.proj.weight' and 29 more" in sentence
    )
    assert (
        "in the network: 'cls_token', 'pos_embed', 'patch_embed.proj.weight' and 29 more"
        in sentence
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {k: v for k, v in s.items() if k != "blocks.1.mlp.fc2.bias"},
        lambda s: {**s, "blocks.2.norm1.weight": torch.ones(16)},
        lambda s: {**s, "fc_norm.weight": torch.ones(16)},
        lambda s: {**s, "head.weight": torch.ones(4, 16), "head.bias": torch.ones(4)},
        lambda s: {
            "model": {k: v for k, v in s.items() if "head" not in k},
            "head": {k: v for k, v in s.items() if "head" in k},
        },
    ],
)
def test_nothing_is_loaded_in_part(change: Callable[[State], State], tmp_path: Path) -> None:
    torch.save(change(dict(small_vit().state_dict())), tmp_path / "w.pth")
    network = small_vit(0)
    with pytest.raises(CheckpointError, match="does not fit VisionTransformer: "):
        as_model(network, checkpoint=tmp_path / "w.pth")
    assert same(network.state_dict(), small_vit(0).state_dict())


@pytest.mark.parametrize(
    "name",
    [
        "file.pth",
        "runs/best.safetensors",
        "weights.npz",
        "epoch=3.ckpt",
        "last.pth.tar",
        "pytorch_model.bin",
    ],
)
def test_a_file_is_no_name(name: str) -> None:
    with pytest.raises(
        ModelError, match=f"'{name}' is named like a file of weights.*checkpoint='{name}'"
    ):
        load_model(name)


def test_classifiers_that_timm_leaves_out_are_told(tmp_path: Path) -> None:
    full = load_model("mixer_s32_224", pretrained=False, num_blocks=1, device="cpu")
    safetensors.torch.save_file(full.module.state_dict(), tmp_path / "w.safetensors")
    overlay = {
        "pretrained_cfg_overlay": {"file": str(tmp_path / "w.safetensors"), "hf_hub_id": None}
    }
    model = load_model("mixer_s32_224", num_classes=7, num_blocks=1, device="cpu", **overlay)
    assert model.weights.note == "Its head for 7 classes is random: the weights' own has 1000."


def test_code_beside_what_is_allowed_is_not_run(state: State, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    torch.save(
        {"state_dict": state, "args": argparse.Namespace(trap=Malicious(proof))}, tmp_path / "w.pth"
    )
    assert "holds pickled code (posix.mkdir), which is refused and was not run" in refused(
        tmp_path / "w.pth"
    )
    assert not proof.exists()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_compiled_archives_are_told(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "w.pt")
    assert "is a TorchScript archive, whose code is not run" in refused(tmp_path / "w.pt")


def test_mappings_that_hold_each_other_are_looked_at_once(state: State, tmp_path: Path) -> None:
    """Three hundred keys for one mapping that holds itself were eight thousand million places."""
    circle: dict[str, Any] = {"model": state}
    circle |= dict.fromkeys(map(str, range(300)), circle)
    torch.save(circle, tmp_path / "w.pth")
    assert same(load(tmp_path / "w.pth"), state)


@pytest.mark.parametrize("kind", [">f4", "<f4"])
def test_arrays_of_either_order_of_bytes(state: State, tmp_path: Path, kind: str) -> None:
    arrays = {
        name: value.numpy().astype(kind) if value.is_floating_point() else value.numpy()
        for name, value in state.items()
    }
    np.savez(tmp_path / "w.npz", **arrays)
    assert same(load(tmp_path / "w.npz"), state)


def test_names_in_a_file_are_said_on_one_line(state: State, tmp_path: Path) -> None:
    torch.save(
        {"a\n\x1b[31m" + "x" * 5000: torch.zeros(2), "stem": torch.zeros(2)}, tmp_path / "w.pth"
    )
    said = refused(tmp_path / "w.pth")
    assert said.isprintable()
    assert len(said) < 800
    long = {"conv1.weight": np.zeros(2, np.longdouble)}
    np.savez(tmp_path / "w.npz", **long)
    assert "is float128, which torch does not have" in refused(tmp_path / "w.npz")

"""Networks from a folder and from the Hugging Face hub's cache, with the network off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models.mlp_mixer import MlpMixer
from torch import nn

import mixer_probe.models.hub as hub
from mixer_probe.core.errors import CheckpointError, ModelError
from mixer_probe.models import check_name, load_model
from tests.models.test_checkpoints import Malicious
from tests.networks import noise, randomised

NAME = "vit_tiny_patch16_224"
MIXER = {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 16, "mlp_ratio": [0.5, 2.0]}


def network(seed: int = 3, **options: Any) -> nn.Module:
    return randomised(timm.create_model(NAME, num_classes=4, depth=2, **options), seed).eval()


def config(**changes: Any) -> dict[str, Any]:
    """config.json as timm's save_for_hf writes it."""
    about = {
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 2, 4],
        "input_size": [3, 64, 64],
        "interpolation": "bilinear",
    }
    about |= {"crop_pct": 0.8, "fixed_input_size": True, "num_classes": 1000, "classifier": "head"}
    whole = {"architecture": NAME, "num_classes": 4, "num_features": 192, "pretrained_cfg": about}
    return whole | {"model_args": {"img_size": 64, "depth": 2}} | changes


def folder(place: Path, **changes: Any) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(config(**changes)))
    save_file(network(img_size=64).state_dict(), place / "model.safetensors")
    return place


def test_threads_that_load_leave_the_hubs_setting_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "_answers", lambda: False)
    before, seen = constants.HF_HUB_OFFLINE, []

    def load(k: int) -> None:
        with suppress(ValueError), hub.offline_if_unreachable():
            time.sleep(0.01 * k)
            seen.append(constants.HF_HUB_OFFLINE)
            raise ValueError

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, (3, 1, 2, 0)))
    assert seen == [True] * 4
    assert constants.HF_HUB_OFFLINE is before


def test_a_folder_of_a_mixer_of_other_sizes(tmp_path: Path) -> None:
    """`model_args` win over the sizes that timm fixes for the name, and what is given by hand wins
    over them."""
    about = {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 4], "input_size": [3, 32, 32], "num_classes": 4}
    described = {
        "architecture": "mixer_b16_224",
        "num_classes": 4,
        "pretrained_cfg": about,
        "model_args": MIXER,
    }
    (tmp_path / "config.json").write_text(json.dumps(described))
    saved = randomised(MlpMixer(**MIXER, num_classes=4))
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    model = load_model(f"local-dir:{tmp_path}", device="cpu")
    assert all(torch.equal(v, saved.state_dict()[k]) for k, v in model.module.state_dict().items())
    assert model.input.size == (3, 32, 32)
    deeper = load_model(f"local-dir:{tmp_path}", device="cpu", pretrained=False, num_blocks=3)
    assert len(deeper.select("blocks")) == 3


# -- folders ---------------------------------------------------------------------------------------


def test_a_folder_by_hand(tmp_path: Path) -> None:
    place = folder(tmp_path)
    model = load_model(f"local-dir:{place}", device="cpu")
    wanted = network(img_size=64)
    assert (model.input.size, model.input.mean, model.input.std) == (
        (3, 64, 64),
        (0.1, 0.2, 0.3),
        (1.0, 2.0, 4.0),
    )
    assert (model.input.interpolation, model.input.crop_pct) == ("bilinear", 0.8)
    assert model.weights.trained
    assert model.name == model.weights.source == f"local-dir:{place}"
    with torch.no_grad():
        assert torch.equal(model.module(noise(2, 64)), wanted(noise(2, 64)))
    twin = model.untrained()
    assert not twin.weights.trained
    assert twin.fingerprint != model.fingerprint
    assert twin.input == model.input


@pytest.mark.skipif(
    not hasattr(timm.models, "save_for_hf"), reason="this timm does not export save_for_hf"
)
def test_a_folder_that_timm_wrote(tmp_path: Path) -> None:
    saved = network()
    timm.models.save_for_hf(saved, tmp_path, safe_serialization=True, model_args={"depth": 2})
    model = load_model(f"local-dir:{tmp_path}", device="cpu")
    assert model.layers[-1].channels == 4
    assert all(torch.equal(v, saved.state_dict()[k]) for k, v in model.module.state_dict().items())


def test_a_folder_with_a_torch_file(tmp_path: Path) -> None:
    place = folder(tmp_path)
    (place / "model.safetensors").unlink()
    torch.save(network(img_size=64).state_dict(), place / "pytorch_model.bin")
    assert load_model(f"local-dir:{place}", device="cpu").weights.trained


def test_a_config_of_the_old_flat_form(tmp_path: Path) -> None:
    place = folder(tmp_path)
    flat = {
        "architecture": NAME,
        "num_classes": 4,
        "mean": [0.1, 0.2, 0.3],
        "unknown": 1,
        "model_args": {"img_size": 64},
    }
    (place / "config.json").write_text(json.dumps(flat))
    model = load_model(f"local-dir:{place}", depth=2, device="cpu")
    assert (model.input.mean, model.layers[-1].channels) == ((0.1, 0.2, 0.3), 4)


def test_a_folder_without_its_weights(tmp_path: Path) -> None:
    place = folder(tmp_path)
    (place / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"no weights in .*; put them there as model\.safetensors"
    ):
        load_model(f"local-dir:{place}")
    assert not load_model(f"local-dir:{place}", pretrained=False, device="cpu").weights.trained


def test_a_folder_with_weights_of_another_network(tmp_path: Path) -> None:
    place = folder(tmp_path, num_classes=7)
    with pytest.raises(
        CheckpointError,
        match=r"does not fit VisionTransformer: 'head.weight' has shape \(4, 192\).*\(7, 192\)",
    ):
        load_model(f"local-dir:{place}")


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    place, proof = folder(tmp_path), tmp_path / "proof"
    (place / "model.safetensors").unlink()
    torch.save({"state_dict": Malicious(proof)}, place / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError,
        match=r"holds pickled code \(posix.mkdir\), which is refused and was not run",
    ):
        load_model(f"local-dir:{place}")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no config.json in .*; local-dir: takes a folder as timm's save_for_hf writes it"),
        ("{", "does not name an 'architecture'"),
        ("[]", "does not name an 'architecture'"),
        ('{"num_classes": 3}', "does not name an 'architecture'"),
        ('{"architecture": "vit_tiny"}', "no model 'vit_tiny' in timm .*; closest: .*vit_tiny"),
    ],
)
def test_folders_that_are_no_model(tmp_path: Path, content: str | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    for attempt in (load_model, check_name):
        with pytest.raises(ModelError, match=sentence):
            attempt(f"local-dir:{tmp_path}")


# -- the hub's cache -------------------------------------------------------------------------------


def cache(root: Path, repository: str, **changes: Any) -> Path:
    """The files of a repository where huggingface_hub looks for them."""
    home = root / f"models--{repository.replace('/', '--')}"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    return folder(home / "snapshots" / revision, **changes)


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_pretrained_tag_from_the_cache(no_network: Path) -> None:
    tag = f"{NAME}.augreg_in21k_ft_in1k"
    place = cache(no_network, f"timm/{tag}")
    wanted = randomised(timm.create_model(NAME), 3)
    save_file(wanted.state_dict(), place / "model.safetensors")
    for name in (tag, NAME):  # the tag is timm's first choice for the name
        model = load_model(name, device="cpu")
        assert (model.name, model.weights.source, model.weights.trained) == (tag, tag, True)
        assert all(
            torch.equal(v, wanted.state_dict()[k]) for k, v in model.module.state_dict().items()
        )
    assert not model.untrained().weights.trained


def test_a_repository_of_a_mixer_of_other_sizes(no_network: Path) -> None:
    place = cache(no_network, "someone/small-mixer", architecture="mixer_b16_224", model_args=MIXER)
    saved = randomised(MlpMixer(**MIXER, num_classes=4))
    save_file(saved.state_dict(), place / "model.safetensors")
    model = load_model("hf-hub:someone/small-mixer", device="cpu")
    assert all(torch.equal(v, saved.state_dict()[k]) for k, v in model.module.state_dict().items())
    assert (
        len(
            load_model(
                "hf-hub:someone/small-mixer", pretrained=False, num_blocks=3, device="cpu"
            ).select("blocks")
        )
        == 3
    )


def test_weights_from_elsewhere_are_finite(no_network: Path) -> None:
    place = cache(no_network, "someone/tiny-vit")
    weights = network(img_size=64).state_dict()
    weights["head.bias"][1] = torch.inf
    save_file(weights, place / "model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"hf-hub:someone/tiny-vit have values that are NaN or infinite.*in 'head.bias'",
    ):
        load_model("hf-hub:someone/tiny-vit")


@pytest.mark.parametrize("scheme", ["hf-hub:", "hf_hub:"])
def test_a_hub_repository_from_the_cache(no_network: Path, scheme: str) -> None:
    cache(no_network, "someone/tiny-vit")
    model = load_model(f"{scheme}someone/tiny-vit", device="cpu", img_size=64)
    assert (model.name, model.input.mean) == ("hf-hub:someone/tiny-vit", (0.1, 0.2, 0.3))
    assert not model.weights.note
    with torch.no_grad():
        assert torch.equal(model.module(noise(2, 64)), network(img_size=64)(noise(2, 64)))


def test_weights_that_cannot_be_had_say_what_was_tried(no_network: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model("resnet18.a1_in1k")
    sentence = str(caught.value)
    assert sentence.startswith(
        "the weights of resnet18.a1_in1k are unavailable: tried the Hugging Face repository "
        "timm/resnet18.a1_in1k "
    )
    assert str(no_network) in sentence
    assert (
        "load_model('resnet18', checkpoint='model.safetensors') or --checkpoint, or use zoo:mixer"
        in sentence
    )
    assert "\n" not in sentence
    with pytest.raises(ModelError, match="tried the Hugging Face repository someone/nothing"):
        load_model("hf-hub:someone/nothing")


@pytest.mark.usefixtures("no_network")
def test_names_without_any_pretrained_weights() -> None:
    with pytest.raises(
        ModelError, match=r"the weights of mixer_l32_224 are unavailable: .*Give a file instead"
    ):
        load_model("mixer_l32_224")


def test_an_unreachable_hub_leaves_the_setting_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for answers in (True, False):
        monkeypatch.setattr(hub, "_answers", lambda answers=answers: answers)
        with suppress(KeyError), hub.offline_if_unreachable():
            assert constants.HF_HUB_OFFLINE is not answers
            raise KeyError
        assert constants.HF_HUB_OFFLINE is False


def test_a_hub_that_is_off_on_purpose_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_answers", lambda: pytest.fail("asked"))
    with hub.offline_if_unreachable():
        assert constants.HF_HUB_OFFLINE


_SCRIPT = """
import sys, time
from mixer_probe.core.errors import ModelError
from mixer_probe.models import load_model
began = time.time()
print(load_model(sys.argv[1], device="cpu").weights.source)
try:
    load_model("resnet18.a1_in1k")
except ModelError as error:
    print(error)
print(time.time() - began)
"""


@pytest.mark.parametrize(
    "setting", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_without_a_network_the_cache_is_used_and_nobody_waits(
    tmp_path: Path, setting: dict[str, str]
) -> None:
    """A fresh process with the hub switched off, and one that finds nobody at the hub's address."""
    cache(tmp_path, "someone/tiny-vit", model_args={"img_size": 64, "depth": 2})
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(tmp_path),
        "PYTHONWARNINGS": "ignore",
        **setting,
    }
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, "hf-hub:someone/tiny-vit"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    source, sentence, seconds = done.stdout.splitlines()
    assert source == "hf-hub:someone/tiny-vit"
    assert "are unavailable" in sentence
    assert float(seconds) < 10
    assert "Retrying" not in done.stderr
    assert time.time() - began < 60

"""Files that somebody else made, as bytes: each is loaded, or refused in one sentence; no code runs
and no memory is filled."""

from __future__ import annotations

import pickle
import resource
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from hypothesis import given
from timm.models.mlp_mixer import MlpMixer

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.text import visible
from tests.hostile import BOUNDED, FILES, Code, checkpoints, image_files, tell, torch_bytes
from tests.networks import as_model, randomised

# Far more than any of these files takes, far less than what some of them declare.
MOST_BYTES = 400 * 2**20


def network() -> MlpMixer:
    return randomised(MlpMixer(img_size=16, patch_size=8, embed_dim=8, num_blocks=1, num_classes=3))


STATE = {name: value.clone() for name, value in network().state_dict().items()}
_top = TemporaryDirectory(prefix="hostile-")
CANARY = Path(_top.name) / "canary"


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def outcome(call: Callable[[], Any]) -> str:
    """ "loaded", or the kind of a refusal of one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except MixerProbeError as error:
            said = str(error)
            assert said == visible(said), said
            assert len(said.splitlines()) == 1, said
            assert 0 < len(said) < 1500, said
            return type(error).__name__
    return "loaded"


def test_checkpoints_of_any_bytes_load_whole_or_are_refused() -> None:
    tried = Counter[tuple[str, str]]()
    before = peak()

    @BOUNDED
    @given(checkpoints(STATE, str(CANARY)))
    def check(made: tuple[str, str, bytes]) -> None:
        kind, ending, content = made
        file = Path(_top.name) / f"weights{ending}"
        file.write_bytes(content)
        module = network()
        for parameter in module.parameters():
            parameter.data.zero_()
        found = outcome(lambda: as_model(module, 16, checkpoint=file))
        tried[kind, found] += 1
        # All of a file, or nothing of it.
        assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
        assert found == "loaded" or not any(bool(value.any()) for value in module.parameters())
        assert not CANARY.exists()

    check()
    tell("checkpoints", tried)
    assert sum(tried.values()) >= FILES
    assert {found for _, found in tried} == {"loaded", "CheckpointError"}
    assert not any(
        found == "loaded"
        for kind, found in tried
        if kind in ("code", "bare code", "bytes", "headers")
    )
    assert peak() - before < MOST_BYTES


def test_images_of_any_bytes_are_decoded_or_refused() -> None:
    tried = Counter[tuple[str, str]]()
    before = peak()
    folder = Path(_top.name) / "pictures"
    folder.mkdir()

    @BOUNDED
    @given(image_files())
    def check(made: tuple[str, str, bytes]) -> None:
        kind, ending, content = made
        file = folder / f"a{ending}"
        file.write_bytes(content)

        def load() -> None:
            images = mp.load_images(folder)
            pixels = np.asarray(images[0])
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert len(images.keys) == 1

        tried[kind, outcome(load)] += 1
        file.unlink()

    check()
    tell("images", tried)
    assert sum(tried.values()) >= FILES
    assert {found for _, found in tried} == {"loaded", "ImagesError"}
    assert not any(found == "loaded" for kind, found in tried if kind == "empty")
    assert peak() - before < MOST_BYTES


def test_the_traps_are_armed(tmp_path: Path) -> None:
    """What the checkpoints above hold makes the folder when it is unpickled."""
    for how in ("eval", "system", "mkdir"):
        canary = tmp_path / how
        pickle.loads(pickle.dumps(Code(str(canary), how)))
        assert canary.is_dir()
    (tmp_path / "file").write_bytes(torch_bytes({"a": Code(str(tmp_path / "again"), "mkdir")}))
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "again").is_dir()

"""`mixer-probe attribute`: what it writes, at whose resolution, and one line with exit code 2 for
what cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from mixer_probe.core.result import load_results
from mixer_probe.images import load_images
from tests.helpers.golden import check_folder
from tests.test_cli import Run, run

__all__ = ["run"]

TWO = ("zoo:mixer-s0", "zoo:resnet-s0")


def photo(path: Path, size: tuple[int, int] = (1200, 800), mode: str = "RGB") -> str:
    """A smooth picture with noise."""
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 255, (8, 12, 3), dtype=np.uint8)).resize(size)
    noisy = np.asarray(small).astype(int) + random.integers(-20, 20, (size[1], size[0], 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode).save(path)
    return str(path)


def test_help_shows_an_example(run: Run) -> None:
    code, out, _ = run("attribute", "--help")
    assert code == 0
    assert "Example: mixer-probe attribute" in out


def test_maps_curves_and_agreement_of_two_networks(
    run: Run, tmp_path: Path, update_golden: bool
) -> None:
    out = tmp_path / "a"
    arguments = (
        "--method",
        "saliency,gradcam",
        "--what",
        "overlays,curves,agreement",
        "--limit",
        "2",
        "--device",
        "cpu",
    )
    code, printed, err = run("attribute", *TWO, *arguments, "--out", str(out))
    assert code == 0, err
    assert "Target: the true class." in printed
    # Of two images nothing is claimed.
    assert re.search(
        r"mixer-s0, deletion: (saliency|Grad-CAM) has the largest gain, -?\d\.\d\d \[", printed
    )
    assert "2 images are too few for a claim, which requires 12" in printed
    assert re.search(r"Saliency: mixer-s0 and resnet-s0 -?\d\.\d\d \[", printed)
    names = {file.name for file in out.iterdir()}
    assert {
        "report.html",
        "results.json",
        "attributions.json",
        "attribution-maps.csv",
        "deletion-and-insertion.csv",
    } <= names
    assert {
        f"{p}.png"
        for p in ("attributions", "attribution-curves", "agreement-methods", "agreement-networks")
    } <= names
    overlays = sorted(file.name for file in (out / "overlays").iterdir())
    assert len(overlays) == 2 * 2 * 2
    assert Image.open(out / "overlays" / overlays[0]).size == (32, 32)
    maps = load_results(out / "attributions.json")
    assert [(a.model.name, a.method, a.maps.shape) for a in maps] == [
        (n, m, (2, 32, 32)) for n in TWO for m in ("saliency", "gradcam")
    ]
    kinds = [type(r).__name__ for r in load_results(out / "results.json")]
    assert kinds == ["PerturbationCurves"] * 2 + ["AttributionPanel"] + ["Agreement"] * 4
    check_folder("attribute", out, update_golden)


def test_rows_as_json_for_a_class_by_name_or_index(run: Run) -> None:
    arguments = (
        "zoo:vit-s0",
        "--method",
        "gradient_attention",
        "--what",
        "overlays",
        "--limit",
        "2",
        "--device",
        "cpu",
        "--json",
    )
    code, printed, err = run("attribute", *arguments, "--target", "Cat")
    assert code == 0, err
    rows = json.loads(printed)["attribution-maps"]
    assert [r["target"] for r in rows] == ["cat", "cat"]
    assert [
        r["target"]
        for r in json.loads(run("attribute", *arguments, "--target", "3")[1])["attribution-maps"]
    ] == ["cat"] * 2
    predicted = json.loads(run("attribute", *arguments, "--target", "predicted")[1])[
        "attribution-maps"
    ]
    assert [r["target"] for r in predicted] == [r["predicted"] for r in predicted]


def test_conductance_is_of_mixers_only(run: Run, tmp_path: Path) -> None:
    arguments = ("--what", "conductance", "--limit", "1", "--device", "cpu")
    code, printed, err = run("attribute", "zoo:vit-s0", *arguments)
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert "no network has a token-mixing MLP" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "salency"), "closest: saliency"),
        (("--method", "deeplift"), "DeepLIFT has no rule for GELU"),
        (
            ("--method", "attention_rollout"),
            "has no attention; 'gradcam' and 'integrated_gradients' work",
        ),
        (("--what", "overlay"), "closest: overlays"),
        (("--target", "10"), "has no class 10: its 10 classes are 0 to 9"),
        (("--target", "-1"), "has no class -1"),
        (("--target", "horsse"), "has no class 'horsse'; closest: horse"),
        (("--layer", "head", "--method", "gradcam"), "'head' is pooled; 'blocks.7' works"),
        (("--layer", "blocks.0", "--method", "saliency"), "--layer is that of Grad-CAM"),
        (("--baseline", "blak"), "closest: black"),
        (("--image", "/nowhere.png"), "/nowhere.png: the file is gone"),
        (("--data", "demo", "--image", "x.png"), "not both"),
        (("--data", "photos", "--target", "true"), "is among the 10 of zoo:mixer-s0 ('airplane', "),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    code, out, err = run(
        "attribute",
        "zoo:mixer-s0",
        "--limit",
        "2",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "a"),
        *options,
    )
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_unlabelled_files_have_no_true_class(run: Run, tmp_path: Path) -> None:
    code, _, err = run(
        "attribute",
        "zoo:vit-s0",
        "--image",
        photo(tmp_path / "a.png", (64, 48)),
        "--target",
        "true",
        "--device",
        "cpu",
    )
    assert code == 2
    assert "(files) have no labels" in err
    code, _, err = run("attribute", "zoo:vit-s0", "--image", str(tmp_path), "--device", "cpu")
    assert code == 2
    assert "is a folder" in err


@pytest.mark.filterwarnings("always::mixer_probe.core.errors.ImagesWarning")
def test_files_of_any_mode_are_drawn_at_their_own_resolution(run: Run, tmp_path: Path) -> None:
    files = [
        photo(tmp_path / "cmyk.jpg", (90, 60), "CMYK"),
        photo(tmp_path / "alpha.png", (40, 70), "RGBA"),
        photo(tmp_path / "grey.png", (64, 64), "L"),
    ]
    Image.fromarray(np.arange(50 * 40, dtype=np.uint16).reshape(50, 40) * 30).save(
        tmp_path / "deep.png"
    )
    frames = [Image.new("P", (33, 44), i) for i in (10, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    files += [str(tmp_path / "deep.png"), str(tmp_path / "moving.gif")]
    out = tmp_path / "out"
    pictures = [part for file in files for part in ("--image", file)]
    arguments = (
        "--method",
        "saliency",
        "--what",
        "overlays",
        "--shown",
        "9",
        "--device",
        "cpu",
        "--out",
        str(out),
    )
    code, printed, err = run("attribute", "zoo:resnet-s0", *pictures, *arguments)
    assert code == 0, err
    assert "warning: 1 of 5 images of 'files' are of more than 8 bits" in err
    assert "Target: the class that each network predicts." in printed
    sizes = [Image.open(file).size for file in sorted((out / "overlays").iterdir())]
    assert sizes == [(90, 60), (40, 70), (64, 64), (40, 50), (33, 44)]


def test_a_zero_head_is_said(run: Run, tmp_path: Path) -> None:
    file = photo(tmp_path / "photo.jpg")
    code, out, err = run(
        "attribute", "mixer_b16_224", "--no-pretrained", "--image", file, "--device", "cpu"
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "every gradient of mixer_b16_224's logits is 0" in err
    assert "its head is zero" in err


def test_a_headless_network_needs_a_target(run: Run, tmp_path: Path) -> None:
    file = photo(tmp_path / "photo.jpg", (300, 200))
    arguments = (
        "vit_small_patch14_dinov2",
        "--no-pretrained",
        "--image",
        file,
        "--device",
        "cpu",
        "--method",
        "saliency",
    )
    code, _, err = run("attribute", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert "has no classifier" in err
    code, _, err = run("attribute", *arguments, "--target", "cat")
    assert code == 2
    assert "has no classifier" in err


def test_a_checkpoint_with_a_head_explains_a_photograph_at_its_own_resolution(
    run: Run, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = timm.create_model("mixer_s32_224")
    torch.nn.init.normal_(network.head.weight, std=0.02)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    out = tmp_path / "out"
    arguments = (
        "--checkpoint",
        str(tmp_path / "weights.safetensors"),
        "--image",
        photo(tmp_path / "photo.jpg"),
        "--device",
        "cpu",
    )
    # Untrained layer norms without biases jump at a blank baseline.
    methods = (
        "--method",
        "saliency,integrated_gradients,gradcam",
        "--baseline",
        "black",
        "--what",
        "overlays",
        "--out",
        str(out),
    )
    code, printed, err = run("attribute", "mixer_s32_224", *arguments, *methods)
    assert code == 0, err
    assert re.search(
        r"relative deviations are at most \d\.\d % \(mixer_s32_224, integrated gradients\); all "
        r"maps are",
        printed,
    )
    overlays = sorted((out / "overlays").iterdir())
    assert len(overlays) == 3
    drawn = np.asarray(Image.open(overlays[0])).astype(int)
    assert drawn.shape == (800, 1200, 3)
    # timm's crop takes the middle 87.5 % of the shorter side: 700 px; grey outside, framed,
    # coloured inside.
    assert (drawn[:, :249] == drawn[:, :249, :1]).all()
    assert (drawn[60:740, 250] == 0).all()
    assert (drawn[100:700, 300:900].max(-1) - drawn[100:700, 300:900].min(-1)).max() > 50
    (panel,) = (
        r for r in load_results(out / "results.json") if type(r).__name__ == "AttributionPanel"
    )
    assert panel.sizes.tolist() == [[1200, 800]]
    assert panel.pictures[0].shape == (427, 640, 3)
    assert panel.predicted_names[0][0] in load_images("photos").class_names


def own_checkpoint(tmp_path: Path) -> tuple[str, ...]:
    """A network of three outputs that no file gives names to."""
    network = timm.create_model("resnet18", num_classes=3)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    return ("--checkpoint", str(tmp_path / "w.safetensors"), "--model-args", '{"num_classes": 3}')


@pytest.mark.parametrize("written", ["file", "list", "file for a model"])
def test_names_of_classes_from_the_command_line(run: Run, tmp_path: Path, written: str) -> None:
    given = "cat, dog,frog"
    if written != "list":
        file = tmp_path / "names.txt"
        file.write_text("cat, the\ndog\nfrog\n")
        given = f"resnet18={file}" if written == "file for a model" else str(file)
    wanted = "dog" if written == "list" else "cat, the"
    options = (
        "--image",
        photo(tmp_path / "a.png", (64, 48)),
        "--device",
        "cpu",
        "--method",
        "saliency",
        "--what",
        "overlays",
    )
    own = own_checkpoint(tmp_path)
    code, printed, err = run(
        "attribute",
        "resnet18",
        *own,
        *options,
        "--class-names",
        given,
        "--target",
        wanted,
        "--json",
    )
    assert (code, err) == (0, "")
    assert json.loads(printed)["attribution-maps"][0]["target"] == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("cat,dog", "3 outputs and 2 class_names"),
        ("cat,,dog", "name 2 of 3 is empty"),
        ("nowhere.txt", "nowhere.txt is neither"),
    ],
)
def test_names_that_are_none_are_one_line(run: Run, tmp_path: Path, given: str, said: str) -> None:
    options = (
        "--image",
        photo(tmp_path / "a.png", (64, 48)),
        "--device",
        "cpu",
        "--method",
        "saliency",
        "--target",
        "dog",
    )
    code, _, err = run(
        "attribute", "resnet18", *own_checkpoint(tmp_path), *options, "--class-names", given
    )
    assert (code, err.count("\n")) == (2, 1)
    assert said in err

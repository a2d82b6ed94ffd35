"""The command line: what it prints, what it writes, and one clear line with exit code 2 for a bad
argument."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from PIL import Image
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer

import mixer_probe as mp
from mixer_probe import cli
from mixer_probe.cli.options import ImageOptions, ModelOptions, PassOptions
from mixer_probe.cli.reports import written
from mixer_probe.core.result import load_results
from mixer_probe.core.threads import chosen_decoders
from mixer_probe.report import Narrative
from mixer_probe.study import StudySettings
from tests.helpers.golden import check_folder


class Run:
    """Runs `mixer-probe ARGUMENTS` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["mixer-probe", *arguments])
        for console in (cli.console, cli.errors):
            self._monkeypatch.setattr(console, "_width", 200)
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        out, err = self._capsys.readouterr()
        return int(code or 0), out, err  # type: ignore[call-overload]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)


COMMANDS = [
    "demo",
    "models",
    "inspect",
    "extract",
    "compare",
    "probe",
    "weights",
    "channels",
    "concepts",
    "mixing",
    "report",
    "app",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: mixer-probe {command}" in out


def test_models_lists_families_tags_and_what_google_tags_hold(run: Run) -> None:
    code, out, _ = run("models", "mixer_b16", "--json")
    entry = next(e for e in json.loads(out) if e["name"] == "mixer_b16_224")
    assert code == 0
    assert entry["family"] == "mixer"
    assert "miil_in21k" in entry["tags"]
    assert list(entry["notes"]) == ["goog_in21k_ft_in1k"]
    assert "ImageNet-1k from scratch" in entry["notes"]["goog_in21k_ft_in1k"]
    # ConvMixer has the word in its name and is a CNN.
    assert "cnn" in run("models", "convmixer*")[1]
    assert "convmixer" not in run("models", "mixer_*")[1]


def test_inspect_prints_layers_parameters_and_macs(run: Run) -> None:
    code, out, _ = run("inspect", "resmlp_12_224", "--no-pretrained", "--device", "cpu")
    assert code == 0
    assert "15,350,872" in out
    assert "3.0097" in out
    assert "blocks.11.linear_tokens" in out
    assert "Untrained" in out
    card = json.loads(
        run("inspect", "mixer_s32_224", "--no-pretrained", "--device", "cpu", "--json")[1]
    )
    assert card["macs"] == 1002426368
    assert card["model"]["parameters"] == 19104624


def test_extract_stores_a_run_that_compare_takes(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        arguments = (
            "--no-pretrained",
            "--limit",
            "24",
            "--out",
            str(tmp_path / name),
            "--device",
            "cpu",
        )
        assert run("extract", "mixer_s32_224", *arguments)[0] == 0
    code, out, _ = run(
        "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--permutations", "20", "--json"
    )
    (rows,) = json.loads(out).values()
    assert code == 0
    assert len(rows) == 64
    diagonal = [r["value"] for r in rows if r["layer_a"] == r["layer_b"]]
    assert diagonal == pytest.approx([1.0] * 8, abs=1e-9)


FILES = {
    "similarity-of-layers.csv",
    "results.json",
    "similarity.svg",
    "similarity.png",
    "report.html",
}


def stored(run: Run, path: Path, model: str = "zoo:mixer-s0", *options: str) -> str:
    assert (
        run("extract", model, "--limit", "24", "--out", str(path), "--device", "cpu", *options)[0]
        == 0
    )
    return str(path)


def test_compare_of_stored_runs_writes_files_and_says_what_they_hold(
    run: Run, tmp_path: Path
) -> None:
    a, b = stored(run, tmp_path / "a"), stored(run, tmp_path / "b", "zoo:resnet-s0")
    out = tmp_path / "out"
    code, printed, _ = run(
        "compare", a, b, "--permutations", "20", "--resamples", "20", "--out", str(out)
    )
    assert code == 0
    assert {file.name for file in out.iterdir()} >= FILES
    number = r"-?\d\.\d+"
    assert re.search(
        rf"mixer-s0 and resnet-s0: CKA \(linear, unbiased\) between pairs of layers is {number} to "
        rf"{number} \(n = 24, 20 permutations; naming the closest pair requires 999\); \d+ of 72 "
        r"pairs are above their own null, 5 % expected by chance\. The best match .*depth.*\.$",
        printed,
        re.MULTILINE,
    )
    assert printed.splitlines()[-1] == str(out / "report.html")
    (matrix,) = load_results(out / "results.json")
    table = pd.read_csv(out / "similarity-of-layers.csv")
    assert table["value"].to_numpy() == pytest.approx(matrix.values.ravel())
    assert Image.open(out / "similarity.png").size > (600, 400)


def test_compare_of_model_names_by_several_measures_on_a_grid(
    run: Run, tmp_path: Path, update_golden: bool
) -> None:
    arguments = (
        "--limit",
        "20",
        "--grid",
        "2",
        "--layers",
        "blocks.0,blocks.7",
        "--permutations",
        "20",
        "--resamples",
        "0",
    )
    names = (
        "--measure",
        "cka,procrustes",
        "--without-top-pc",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    )
    code, printed, _ = run("compare", "zoo:mixer-s0", "zoo:vit-s0", *arguments, *names)
    assert code == 0
    assert {file.name for file in tmp_path.iterdir()} >= FILES
    matrices = load_results(tmp_path / "results.json")
    assert [(m.measure, m.grid, m.reduce, m.without_top_pc) for m in matrices] == [
        (name, (2, 2), "none", 1) for name in ("cka", "procrustes")
    ]
    assert "CKA (linear, unbiased, without 1 PC)" in printed
    assert "Procrustes distance" in printed
    assert "best match of" in printed
    assert len(pd.read_csv(tmp_path / "similarity-of-layers.csv")) == 8
    check_folder("compare", tmp_path, update_golden)


def test_a_model_is_compared_with_a_stored_run_on_some_layers(run: Run, tmp_path: Path) -> None:
    a = stored(run, tmp_path / "a")
    arguments = (
        "--limit",
        "24",
        "--layers",
        "blocks.[01]",
        "--permutations",
        "0",
        "--resamples",
        "0",
        "--json",
    )
    code, out, _ = run("compare", a, "zoo:mixer-s0", *arguments, "--device", "cpu")
    (rows,) = json.loads(out).values()
    assert code == 0
    assert [(r["layer_a"], r["layer_b"]) for r in rows] == [
        (f"blocks.{i}", f"blocks.{j}") for i in range(2) for j in range(2)
    ]
    assert {file.name for file in tmp_path.iterdir()} == {"a"}


def test_noise_is_not_above_chance(run: Run, tmp_path: Path) -> None:
    runs = []
    for seed in range(2):
        folder = tmp_path / f"run{seed}"
        stored(run, folder)
        rng = np.random.default_rng(seed)
        for name, array in zarr.open_group(folder, mode="r+").arrays():
            if name.startswith("blocks"):
                array[:] = rng.normal(size=array.shape)
        runs.append(str(folder))
    code, printed, _ = run("compare", *runs, "--out", str(tmp_path / "out"))
    assert code == 0
    assert "no pair of layers is above chance" in printed
    assert "the best pair is compared with the best pair" in printed


def test_bad_comparisons_are_one_line(run: Run, tmp_path: Path) -> None:
    a = stored(run, tmp_path / "a")
    other = stored(run, tmp_path / "b", "zoo:mixer-s0", "--seed", "7")
    for arguments, message in {
        (a, other): "compare the same images",
        (a, a, "--layers", "blocks.99"): "no layer 'blocks.99'",
        (a, a, "--measure", "ckaa"): "unknown measure 'ckaa'; closest: cka",
        (a, a, "--measure", ""): "unknown measure",
        (a, a, "--reduce", "none"): "holds positions reduced by 'mean'",
        (a, a, "--grid", "7", "--reduce", "mean"): "--grid needs --reduce none",
        (a, a, "--grid", "7x"): "such as 7 or 7x7",
        (a, a, "--permutations", "5"): "5 permutations",
        (a, a, "--resamples", "5"): "5 resamples",
        (a, a, "--estimator", "none"): "estimator",
        (a, a, "--out", f"{a}/zarr.json/x"): "cannot create the folder",
    }.items():
        code, out, err = run("compare", *arguments)
        assert (code, err.count("\n"), out) == (2, 1, ""), (arguments, err)
        assert message in err


def test_report_of_a_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The budget of large networks for attributions.
    monkeypatch.setattr("mixer_probe.attribution.settings._HEAVY", 0)
    for i in range(12):
        folder = tmp_path / "data" / ("dark" if i % 2 else "bright")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (i * 9 + 90 * (i % 2), i * 5, 200 - i)).save(folder / f"{i}.png")
    out = tmp_path / "out"
    arguments = (
        "--no-pretrained",
        "--data",
        str(tmp_path / "data"),
        "--device",
        "cpu",
        "--permutations",
        "20",
    )
    small = {
        "mixer_s32_224": {"num_blocks": 2, "embed_dim": 64},
        "resnet10t": {"channels": [16, 16, 32, 32], "stem_width": 8},
    }
    options = [f"--model-args={name}={json.dumps(given)}" for name, given in small.items()]
    code, printed, err = run("report", *small, *options, *arguments, "--out", str(out))
    assert code == 0, err
    assert printed.strip() == str(out / "report.html")
    page = (out / "report.html").read_text()
    assert "mixer_s32_224 and resnet10t are untrained" in page
    assert f"--data {tmp_path / 'data'}" in page
    assert {type(r).__name__ for r in load_results(out / "results.json")} >= {
        "TokenMixing",
        "ProbeResult",
        "SimilarityMatrix",
    }


def test_weights_writes_pictures_tables_and_says_what_they_show(
    run: Run, tmp_path: Path, update_golden: bool
) -> None:
    out = tmp_path / "w"
    code, printed, _ = run(
        "weights",
        "zoo:mixer-s0",
        "--what",
        "units,kernels,anatomy",
        "--block",
        "-1",
        "--out",
        str(out),
    )
    assert code == 0
    assert "mixer-s0: 128 units per block" in printed
    names = {file.name for file in out.iterdir()}
    assert {
        "report.html",
        "results.json",
        "token-mixing-units.csv",
        "spatial-kernels.csv",
        "anatomy.csv",
    } <= names
    for picture in (
        "units-read-mixer-s0-blocks.0",
        "units-read-mixer-s0-blocks.7",
        "kernels-mixer-s0-blocks.7",
        "anatomy",
    ):
        assert {f"{picture}.svg", f"{picture}.png"} <= names
    units = pd.read_csv(out / "token-mixing-units.csv")
    assert list(units["model"].unique()) == ["zoo:mixer-s0", "zoo:mixer-s0?untrained"]
    assert len(units) == 2 * 8 * 128
    kinds = [type(r).__name__ for r in load_results(out / "results.json")]
    assert kinds == ["Anatomy", "TokenMixing", "TokenMixing", "SpatialKernels", "SpatialKernels"]
    check_folder("weights", out, update_golden)


def test_weights_of_a_cnn_are_what_it_has(run: Run, tmp_path: Path) -> None:
    arguments = ("weights", "resnet18", "--no-pretrained", "--json", "--out", str(tmp_path / "w"))
    code, printed, _ = run(*arguments, "--what", "stem,anatomy")
    assert code == 0
    tables = json.loads(printed)
    assert list(tables) == ["anatomy", "stem-filters"]
    assert len(tables["stem-filters"]) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--what", "units"), "convolution"),
        (("--what", "unit"), "closest: units"),
        (("--what", "stem", "--block", "9"), "has blocks 0 to 8, not 9"),
    ],
)
def test_weights_that_a_network_does_not_have(
    run: Run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    code, _, err = run("weights", "zoo:resnet-s0", *options, "--out", str(tmp_path / "w"))
    assert code == 2
    assert message in err
    assert not (tmp_path / "w").exists()


def test_probe_prints_intervals(run: Run) -> None:
    code, out, _ = run(
        "probe", "mixer_s32_224", "--no-pretrained", "--limit", "40", "--device", "cpu", "--json"
    )
    rows = json.loads(out)["linear-probes"]
    assert code == 0
    assert len(rows) == 8
    assert all(r["low"] <= r["accuracy"] <= r["high"] and r["n_test"] == 40 for r in rows)


def test_probe_writes_pictures_tables_and_says_what_they_show(
    run: Run, tmp_path: Path, update_golden: bool
) -> None:
    out = tmp_path / "p"
    arguments = (
        "--limit",
        "60",
        "--device",
        "cpu",
        "--what",
        "accuracy,control,patch-position",
        "--shots",
        "1,5",
    )
    code, printed, _ = run("probe", "zoo:mixer-s0", *arguments, "--out", str(out))
    assert code == 0
    percent = r"\d+\.\d % \[\d+\.\d %, \d+\.\d %\]"
    head = rf"mixer-s0: (highest )?accuracy {percent} after blocks\.\d, n = 60"
    assert re.search(rf"{head}.*Untrained baseline: at most {percent}", printed)
    assert re.search(rf"Raw pixels: {percent}; chance: 10.0 %", printed)
    shots = rf"{percent} with 1 image per class and {percent} with 5 images per class"
    assert re.search(rf"{shots}; untrained baseline: {percent}", printed)
    names = {file.name for file in out.iterdir()}
    tables = (
        "linear-probes",
        "linear-probes-path",
        "few-shot-probes",
        "control-tasks",
        "patch-position",
    )
    assert {"report.html", "results.json", *(f"{name}.csv" for name in tables)} <= names
    for picture in (
        "accuracy-ridge",
        "path-ridge-mixer-s0",
        "few-shot",
        "controls",
        "patch-position",
    ):
        assert {f"probe-{picture}.svg", f"probe-{picture}.png"} <= names
    rows = pd.read_csv(out / "linear-probes.csv")
    assert list(rows["model"].unique()) == ["zoo:mixer-s0", "zoo:mixer-s0?untrained", "raw pixels"]
    path = pd.read_csv(out / "linear-probes-path.csv")
    assert (path.groupby(["model", "layer"])["chosen"].sum() == 1).all()
    results = load_results(out / "results.json")
    assert [type(r).__name__ for r in results if r.model.name == "zoo:mixer-s0"] == [
        "ProbeResult",
        "FewShotResult",
        "ControlTask",
        "PatchPosition",
    ]
    np.testing.assert_allclose(results[0].accuracy, rows["accuracy"][:8])
    check_folder("probe", out, update_golden)


def test_probe_prints_a_table_where_no_folder_is_given(run: Run) -> None:
    arguments = (
        "--limit",
        "40",
        "--device",
        "cpu",
        "--no-baselines",
        "--layers",
        "blocks.0,blocks.7",
        "--method",
        "knn",
    )
    code, printed, _ = run("probe", "zoo:mixer-s0", *arguments)
    assert code == 0
    assert "Raw pixels" not in printed
    assert "Untrained" not in printed
    header, first, second = (
        line.split() for line in printed.splitlines() if line.startswith(("model", "zoo:"))
    )
    assert header[:4] == ["model", "layer", "depth", "k"]
    assert (first[1], second[1]) == ("blocks.0", "blocks.7")


def folders_of_colours(root: Path, names: tuple[str, ...], shift: int) -> str:
    """Six images of each of some colours, the same file names in every folder."""
    random = np.random.default_rng(shift)
    for k, name in enumerate(names):
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(6):
            pixels = random.integers(0, 60, (40, 40, 3)) + 90 * (
                np.arange(3) == ("red", "green", "blue").index(name)
            )
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k}{i}.png")
    return str(root)


def test_probe_is_fitted_on_one_folder_and_tested_on_another(run: Run, tmp_path: Path) -> None:
    train = folders_of_colours(tmp_path / "train", ("red", "green", "blue"), 0)
    test = folders_of_colours(tmp_path / "test", ("red", "blue"), 1)
    arguments = (
        "--data",
        train,
        "--test-data",
        test,
        "--device",
        "cpu",
        "--layers",
        "blocks.0",
        "--json",
    )
    code, printed, err = run("probe", "zoo:mixer-s0", *arguments)
    rows = json.loads(printed)["linear-probes"]
    assert code == 0, err
    assert [(r["n_train"], r["n_test"], r["classes"]) for r in rows] == [(18, 12, 3)] * 3
    assert rows[-1]["model"] == "raw pixels"
    assert rows[-1]["accuracy"] == 1
    # The other way round, a class has nothing to be learned from.
    code, _, err = run(
        "probe", "zoo:mixer-s0", "--data", test, "--test-data", train, "--device", "cpu"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "'green'" in err


def test_probe_of_targets_and_several_tables(run: Run, tmp_path: Path) -> None:
    data = folders_of_colours(tmp_path / "data", ("red", "green"), 0)
    ids = [f"{name}/{k}{i}.png" for k, name in enumerate(("red", "green")) for i in range(6)]
    table = tmp_path / "table.csv"
    pd.DataFrame({"file": ids, "age": np.arange(12) % 5, "tint": ["r"] * 6 + ["g"] * 6}).to_csv(
        table, index=False
    )
    targets = ("--target", f"{table}:tint", "--target", f"{table}:age", "--target", "brightness")
    arguments = (
        "--data",
        data,
        "--device",
        "cpu",
        "--layers",
        "blocks.0",
        "--no-baselines",
        "--json",
    )
    code, printed, err = run("probe", "zoo:mixer-s0", *arguments, *targets)
    assert code == 0, err
    rows = json.loads(printed)["probes-beyond-the-class"]
    assert [(r["target"], r["metric"]) for r in rows] == [
        ("tint", "accuracy"),
        ("age", "R2"),
        ("brightness", "R2"),
    ]
    assert rows[0]["score"] == 1
    code, printed, _ = run("probe", "zoo:mixer-s0", *arguments, *targets, "--what", "accuracy")
    assert list(json.loads(printed)) == ["linear-probes", "probes-beyond-the-class"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--what", "acuracy"), "closest: accuracy"),
        (("--method", "rigde"), "unknown --method 'rigde'; known: ridge, logistic, knn, centroid"),
        (("--preset", "big_visoin"), "known: big_vision, ridge"),
        (
            ("--shots", "1,many"),
            "--shots is a list of positive numbers such as 1,5,10,25, not '1,many'",
        ),
        (("--shots", "0"), "--shots is a list of positive numbers"),
        (("--shots", "25"), "fewer than the 25 shots asked for"),
        (("--target", "brightnes"), "closest: brightness"),
        (("--target", "/nowhere.csv:age"), "cannot read the table /nowhere.csv"),
        (("--groups", "/nowhere.csv"), "cannot read the groups /nowhere.csv"),
        (("--test-data", "/nowhere"), "/nowhere"),
        (("--test-data", "demo", "--test-split", "train", "--split", "train"), "also in train"),
        (("--what", "calibration", "--method", "centroid"), "no probabilities"),
        (("--layers", "blocks.99"), "no layer 'blocks.99'"),
    ],
)
def test_probes_that_cannot_be_are_one_line(
    run: Run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    arguments = ("zoo:mixer-s0", "--limit", "20", "--device", "cpu", "--out", str(tmp_path / "p"))
    code, out, err = run("probe", *arguments, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("inspect", "mixer_b16_225"), "mixer_b16_224"),
        (("inspect", "mixer_b16_224.goog_in22k"), "goog_in21k"),
        (("inspect", "zoo:mixr"), "mixer"),
        (("inspect", "vgg11", "--no-pretrained"), "known families"),
        (("models", "nosuchnetwork"), "no model of a known family matches 'nosuchnetwork'"),
        (("extract", "mixer_s32_224", "--no-pretrained", "--data", "demmo"), "demo"),
        (
            (
                "extract",
                "mixer_s32_224",
                "--no-pretrained",
                "--layers",
                "blocks.99",
                "--limit",
                "10",
            ),
            "blocks.",
        ),
        (
            ("extract", "mixer_s32_224", "--no-pretrained", "--reduce", "prefix", "--limit", "10"),
            "no prefix token",
        ),
        (("report", "mixer_s32_224", "--data", "/nowhere/at/all"), "/nowhere/at/all"),
        (
            ("probe", "mixer_s32_224", "--no-pretrained", "--data", "photos", "--limit", "10"),
            "one image",
        ),
        (
            ("inspect", "mixer_s32_224", "--checkpoint", "/nowhere.safetensors"),
            "no checkpoint at /nowhere.safetensors",
        ),
        (
            ("inspect", "weights.safetensors"),
            "'weights.safetensors' is named like a file of weights",
        ),
        (
            ("inspect", "mixer_s32_224", "--model-args", "patch_size=8"),
            "--model-args takes arguments of timm as a JSON object",
        ),
        (
            ("inspect", "mixer_s32_224", "--model-args", '{"device": "cpu"}'),
            "without those that are options of their own",
        ),
        (
            ("inspect", "mixer_s32_224", "--no-pretrained", "--model-args", '{"blocks": 2}'),
            "does not take these arguments",
        ),
        (
            ("inspect", "zoo:mixer", "--model-args", '{"num_blocks": 2}'),
            "only networks that timm builds take further arguments",
        ),
        (
            ("report", "a", "b", "--checkpoint", "a=x.pth", "--checkpoint", "a=y.pth"),
            "--checkpoint is given twice for a",
        ),
        (
            ("compare", "mixer_s32_224", "resnet18", "--model-args", "{}"),
            "--model-args {} is for one of 2 models",
        ),
        (("inspect", "mixer_s32_224", "--no-pretrained", "--device", "tpu9"), "no device 'tpu9'"),
        (
            ("report", "resnet18", "vit_tiny_patch16_224", "--checkpoint", "x.pth"),
            "--checkpoint x.pth is for one of 2 models",
        ),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_code_2(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert out == ""


SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_classes": 5}


def test_networks_of_every_size_with_weights_of_their_own(run: Run, tmp_path: Path) -> None:
    """Two models, each with its arguments and its file; the recipe of the report builds both
    again."""
    mixer = MlpMixer(**SMALL, num_blocks=3)
    vit = VisionTransformer(**SMALL, depth=2, num_heads=2)
    options = []
    sized = {
        "mixer_b16_224": (mixer, {"num_blocks": 3}),
        "vit_tiny_patch16_224": (vit, {"depth": 2, "num_heads": 2}),
    }
    for name, (network, more) in sized.items():
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
        options += [
            "--checkpoint",
            f"{name}={tmp_path / name}.pth",
            "--model-args",
            f"{name}={json.dumps(SMALL | more)}",
        ]
    code, _, err = run(
        "weights",
        *sized,
        *options,
        "--what",
        "anatomy",
        "--no-baselines",
        "--out",
        str(tmp_path / "w"),
    )
    assert (code, err) == (0, "")
    loaders = ModelOptions(
        checkpoint=options[1::4], model_args=options[3::4], device="cpu"
    ).loaders(list(sized))
    for loader, network in zip(loaders, (mixer, vit), strict=True):
        again = eval(f"mp.load_model({written(loader)})", {"mp": mp})
        assert all(
            torch.equal(v, network.state_dict()[k]) for k, v in again.module.state_dict().items()
        )
        assert again.input.size == (3, 32, 32)


def test_a_network_of_another_size_by_its_arguments(run: Run) -> None:
    sizes = json.dumps({**SMALL, "num_blocks": 3})
    code, out, _ = run(
        "inspect", "mixer_s32_224", "--no-pretrained", "--json", "--model-args", sizes
    )
    card = json.loads(out)
    assert code == 0
    assert card["input_size"] == [3, 32, 32]
    assert card["model"]["parameters"] == sum(
        p.numel() for p in MlpMixer(**SMALL, num_blocks=3).parameters()
    )


def test_decoders_are_those_of_all_passes_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixer_probe.core.threads._decoders", None)
    PassOptions()
    assert chosen_decoders() is None
    PassOptions(decoders=3)
    assert chosen_decoders() == 3


def test_an_unknown_option_is_refused_too(run: Run) -> None:
    assert run("inspect", "resnet18", "--colour")[0] == 2


def test_the_demo_begins_with_its_findings(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update_golden: bool
) -> None:
    """Of two networks and few analyses; the rest is a study as any other."""
    small = StudySettings(
        measures=("cka",),
        analyses={"probing": ("accuracy",), "channels": (), "attribution": ()},
        permutations=20,
        baselines=False,
    )
    images = mp.load_images("demo", limit=40), mp.load_images("demo", split="train", limit=40)
    monkeypatch.setattr("mixer_probe.cli.reports.DEMO_MODELS", ["zoo:mixer-s0", "zoo:resnet-s0"])
    monkeypatch.setattr(PassOptions, "settings", lambda *_, **__: small)
    monkeypatch.setattr(ImageOptions, "train_and_test", lambda _: images)
    code, _, err = run("demo", "--out", str(tmp_path))
    assert code == 0, err
    assert isinstance(load_results(tmp_path / "results.json")[0], Narrative)
    page = (tmp_path / "report.html").read_text()
    assert page.index("mixer-s0 and resnet-s0 (n = 40)") < page.index('id="models"')
    assert "mp.write_report([narrate(results), *results]" in html.unescape(page)
    check_folder("demo", tmp_path, update_golden)


def test_an_interrupt_says_that_the_work_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    code, _, err = run("demo")
    assert code == 130
    assert "ended by SIGINT; extract, demo and report resume from what is finished" in err

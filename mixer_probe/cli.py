"""The command line: `mixer-probe demo | models | inspect | extract | compare | probe | weights | report | app`."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mixer_probe.errors import ImagesError, MeasureError, MixerProbeError, StoreError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from mixer_probe.capture import Representations
    from mixer_probe.images import Images
    from mixer_probe.models import CatalogueEntry, Model, ModelCard
    from mixer_probe.report import StudySettings
    from mixer_probe.report.section import Section
    from mixer_probe.results import Result
    from mixer_probe.similarity import SimilarityMatrix

app = typer.Typer(
    help="What did an MLP-Mixer learn, and how does that differ from a ViT and a CNN?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
errors = Console(stderr=True)

DEMO_MODELS = ("zoo:mixer-s0", "zoo:vit-s0", "zoo:resnet-s0")

# -- options that several commands share -------------------------------------------------------------------------------

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="timm name or name.tag, zoo:NAME, hf-hub:OWNER/REPO or local-dir:FOLDER.")
]
ModelNames = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="timm names or name.tags, zoo:NAME, hf-hub:OWNER/REPO, local-dir:FOLDER.")
]
Pretrained = Annotated[bool, typer.Option("--pretrained/--no-pretrained", help="Trained weights, or random ones.")]
Checkpoint = Annotated[Path | None, typer.Option(help="A safetensors or weights-only torch file with the model's weights.")]
Data = Annotated[str, typer.Option(help="demo, photos, a folder of images, or a timm data set (torch/..., hfds/..., wds/...).")]
Split = Annotated[str | None, typer.Option(help="Split of the data set, such as train, test or validation.")]
Root = Annotated[str | None, typer.Option(help="Where a timm data set lies on disk.")]
Limit = Annotated[int | None, typer.Option(help="At most this many images, balanced over classes.")]
OnError = Annotated[str, typer.Option(help="raise, or skip: leave unreadable images out and count them.")]
Device = Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")]
Autocast = Annotated[str | None, typer.Option(help="bfloat16 or float16: run the network in mixed precision.")]
_LAYERS = "blocks, spatial, channel, all, a kind, a name or a glob; several with commas."
Layers = Annotated[str, typer.Option(help=_LAYERS)]
Measures = Annotated[str, typer.Option(help="A measure, several with commas, or all; cka, procrustes, mutual_knn, rsa, ...")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images a forward pass.")]
Permutations = Annotated[int, typer.Option(min=0, help="Random pairings of the images for the null.")]
Resamples = Annotated[int, typer.Option(min=0, help="Random halves of the images for the intervals.")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]


def main() -> None:
    """Run the command line; errors made on purpose are one line and exit code 2."""
    warnings.showwarning = _show_warning
    try:
        app()
    except MixerProbeError as error:
        errors.print(f"mixer-probe: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("mixer-probe: interrupted; the same command goes on where it stopped", markup=False)
        sys.exit(130)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    from mixer_probe.errors import MixerProbeWarning

    if issubclass(category, MixerProbeWarning):
        errors.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)


# -- looking at models -------------------------------------------------------------------------------------------------


@app.command(epilog="Example: mixer-probe models mixer")
def models(
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help="Part of a name, or shell wildcards.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List the zoo and timm's Mixer, ViT and CNN models with their pretrained tags."""
    from mixer_probe.models import list_models

    entries = list_models(pattern)
    if as_json:
        _print_json([{"name": e.name, "family": e.family, "tags": e.tags, "notes": dict(e.notes)} for e in entries])
        return
    _print_catalogue(entries)


def _print_catalogue(entries: Sequence[CatalogueEntry]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("model", "family", "pretrained tags"):
        table.add_column(title, overflow="fold")
    for entry in entries:
        table.add_row(entry.name, entry.family, ", ".join(entry.tags) or "-")
    console.print(table)
    for entry in entries:
        for tag, note in entry.notes:
            console.print(f"\n{entry.name}.{tag}: {note}", markup=False, highlight=False)


@app.command(epilog="Example: mixer-probe inspect mixer_b16_224 --no-pretrained")
def inspect(
    model: ModelName,
    pretrained: Pretrained = True,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Print a model's layers, parameters and multiply-accumulates."""
    from mixer_probe.models import describe, load_model
    from mixer_probe.results import to_dict

    card = describe(load_model(model, pretrained=pretrained, checkpoint=checkpoint, device=device))
    if as_json:
        _print_json(to_dict(card))
    else:
        _print_card(card)


def _print_card(card: ModelCard) -> None:
    record = card.model
    rows = {
        "model": f"{record.name} ({card.architecture}, family {record.family})",
        "weights": record.weights,
        "parameters": f"{record.parameters:,}",
        "GMACs": f"{card.macs / 1e9:.4f} an image of {'×'.join(map(str, card.input_size))}",
        "mean, std": f"{card.mean}, {card.std}",
        "sha256": record.sha256[:16],
    }
    for title, text in rows.items():
        console.print(f"{title:12}{text}", markup=False, highlight=False)
    if record.note:
        console.print(f"{'note':12}{record.note}", style="yellow", markup=False, highlight=False)
    _print_frame(card.to_frame())


# -- single analyses ---------------------------------------------------------------------------------------------------


@app.command(epilog="Example: mixer-probe extract zoo:mixer --data demo --out runs/mixer.zarr")
def extract(
    model: ModelName,
    data: Data = "demo",
    out: Annotated[Path, typer.Option(help="The zarr store to write.")] = Path("run.zarr"),
    layers: Layers = "blocks",
    reduce: Annotated[str, typer.Option(help="mean over positions, prefix token, or none (all positions).")] = "mean",
    split: Split = None,
    root: Root = None,
    limit: Limit = None,
    on_error: OnError = "raise",
    pretrained: Pretrained = True,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    autocast: Autocast = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
) -> None:
    """Store a model's representations of images; an interrupted run goes on where it stopped."""
    import mixer_probe as mp

    loaded = mp.load_model(model, pretrained=pretrained, checkpoint=checkpoint, device=device)
    images = _images(data, split, root, limit, on_error, seed)
    run = mp.extract(
        loaded,
        images,
        _layers(layers),
        reduce=reduce,  # type: ignore[arg-type]
        out=out,
        batch_size=batch_size,
        autocast=autocast,
    )
    console.print(f"{run!r}", markup=False, highlight=False)
    console.print(str(out), markup=False, highlight=False)


@app.command(epilog="Example: mixer-probe compare zoo:mixer zoo:vit --measure cka,procrustes --out similarity")
def compare(
    model_a: Annotated[str, typer.Argument(metavar="A", help="A model, or a stored run.")],
    model_b: Annotated[str, typer.Argument(metavar="B", help="Another model or stored run.")],
    data: Data = "demo",
    measure: Measures = "cka",
    estimator: Annotated[str, typer.Option(help="Of CKA: unbiased or biased.")] = "unbiased",
    kernel: Annotated[str, typer.Option(help="Of CKA: linear or rbf.")] = "linear",
    method: Annotated[str, typer.Option(help="Of CKA: auto, gram, moments or minibatch.")] = "auto",
    layers: Annotated[str | None, typer.Option(help=f"{_LAYERS} (default: blocks; of a stored run, all it has)")] = None,
    reduce: Annotated[
        str | None, typer.Option(help="As in extract: mean, prefix or none (default: none with --grid, else mean)")
    ] = None,
    grid: Annotated[str | None, typer.Option(help="Average positions over the cells of a common grid: 7, or 7x7.")] = None,
    without_top_pc: Annotated[int, typer.Option(min=0, help="Leave out that many leading principal components.")] = 0,
    split: Split = None,
    root: Root = None,
    limit: Limit = None,
    on_error: OnError = "raise",
    pretrained: Pretrained = True,
    device: Device = "auto",
    autocast: Autocast = None,
    batch_size: BatchSize = 64,
    permutations: Permutations = 100,
    resamples: Resamples = 100,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results (default: mixer-probe-compare; with --json none).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Similarity of every layer of A with every layer of B by one measure or several, with null and interval.

    Writes similarity.csv, results.json, similarity.svg, similarity.png and report.html."""
    import mixer_probe as mp

    names, cells = _measures(measure), _grid(grid, reduce)
    load = partial(_images, data, split, root, limit, on_error, seed)
    kept = reduce or ("none" if cells else None)
    find = partial(_representations, load=load, layers=layers, reduce=kept, pretrained=pretrained, device=device)
    a, b = (find(source, autocast=autocast, batch_size=batch_size) for source in (model_a, model_b))
    matrices = mp.compare(  # type: ignore[call-overload]
        a,
        b,
        names,
        estimator=estimator,
        kernel=kernel,
        method=method,
        permutations=permutations,
        resamples=resamples,
        without_top_pc=without_top_pc,
        grid=cells,
        seed=seed,
    )
    _deliver_similarity(matrices, out or (None if as_json else Path("mixer-probe-compare")), as_json)


def _measures(text: str) -> tuple[str, ...]:
    """Names of measures; an unknown one is told before any network runs."""
    from mixer_probe.similarity import MEASURES, find_measure

    if text == "all":
        return tuple(MEASURES)
    return tuple(find_measure(name.strip()).name for name in dict.fromkeys(text.split(",")))


def _grid(text: str | None, reduce: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if reduce not in (None, "none"):
        raise MeasureError(f"--grid needs --reduce none: with --reduce {reduce} no positions are left to average")
    sizes = text.lower().replace("×", "x").split("x")
    if len(sizes) > 2 or not all(size.strip().isdigit() and int(size) for size in sizes):
        raise MeasureError(f"--grid is a number of rows and columns such as 7 or 7x7, not '{text}'")
    return int(sizes[0]), int(sizes[-1])


def _deliver_similarity(matrices: Sequence[SimilarityMatrix], out: Path | None, as_json: bool) -> None:
    """Files where a folder is given, and JSON or sentences."""
    import pandas as pd

    from mixer_probe.report import write_report
    from mixer_probe.report.sections import agreement, disagreement
    from mixer_probe.results import save_results, write_text_atomically

    frame = pd.concat([m.to_frame() for m in matrices], ignore_index=True)
    if out is not None:
        _prepare(out)
        settings = {"command": " ".join(["mixer-probe", *map(shlex.quote, sys.argv[1:])])}
        write_text_atomically(out / "similarity.csv", frame.to_csv(index=False))
        save_results(matrices, out / "results.json", settings)
        _save_pictures(matrices, out)
        write_report(matrices, out / "report.html", title="Where two networks agree", settings=settings)
    if as_json:
        console.file.write(frame.to_json(orient="records") + "\n")
        return
    sentences = [agreement(m) for m in matrices] + ([disagreement(matrices)] if len(matrices) > 1 else [])
    sentences[-1] += f" Written to {out}."
    for sentence in sentences:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _save_pictures(matrices: Sequence[SimilarityMatrix], out: Path) -> None:
    """similarity.svg and similarity.png: a heatmap with the best matches, or one panel a measure."""
    from mixer_probe.figures import similarity_heatmaps, similarity_measures

    figure = similarity_measures(matrices) if len(matrices) > 1 else similarity_heatmaps(matrices, paths=True)
    _save_picture(figure, out, "similarity")


def _save_picture(figure: Figure, out: Path, name: str) -> None:
    """NAME.svg and NAME.png in `out`."""
    import matplotlib as mpl

    try:
        # Without a date and with a fixed salt the same numbers give the same file.
        with mpl.rc_context({"svg.hashsalt": "mixer-probe", "svg.fonttype": "path"}):
            figure.savefig(out / f"{name}.svg", dpi=160, metadata={"Date": None})
            figure.savefig(out / f"{name}.png", dpi=160, metadata={"Software": None})
    except OSError as error:
        raise StoreError(f"cannot write pictures to {out}: {error.strerror or error}") from error


@app.command(epilog="Example: mixer-probe probe zoo:mixer zoo:vit --what accuracy,fewshot,control --out probes")
def probe(
    names: ModelNames,
    what: Annotated[
        str | None,
        typer.Option(
            help="accuracy (default), fewshot, confusion, calibration, control, mdl, control-mdl, random-labels, positions, "
            "attentive, patch-position, targets; several with commas, or all."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="Of accuracy, confusion, calibration: ridge, logistic, knn or centroid.")] = "ridge",
    shots: Annotated[str | None, typer.Option(help="Images a class of few-shot probes: 1,5,10,25.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Few-shot protocol: big_vision (default), ridge, logistic, knn or centroid.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="FILE.csv:COLUMN, or a property such as brightness or hue; may be given again.")
    ] = None,
    groups: Annotated[Path | None, typer.Option(help="Table with columns class and group, for control tasks.")] = None,
    data: Data = "demo",
    test_data: Annotated[
        str | None, typer.Option(help="Other images to test on: the probes are fitted on --data, classes matched by name.")
    ] = None,
    layers: Layers = "blocks",
    split: Split = None,
    test_split: Annotated[str | None, typer.Option(help="Split of --test-data.")] = None,
    root: Root = None,
    limit: Limit = None,
    on_error: OnError = "raise",
    pretrained: Pretrained = True,
    baselines: Annotated[bool, typer.Option(help="Also probe every network with random weights, and raw pixels.")] = True,
    device: Device = "auto",
    autocast: Autocast = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for figures, tables, results.json and report.html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Probes of every layer, with 95 % intervals, against the same network untrained, raw pixels and chance.

    With --out writes every figure as SVG and PNG, the numbers as CSV, results.json and report.html."""
    from mixer_probe.report import Study
    from mixer_probe.report.probe_study import read_groups

    settings = _study_settings(
        layers,
        batch_size=batch_size,
        seed=seed,
        baselines=baselines,
        autocast=autocast,
        probes=_probes(what, shots or preset, target),
        probe_method=_probe_method(method, "--method"),
        few_shot=_probe_method(preset or "big_vision", "--preset", "big_vision"),
        shots=_shots(shots),
        targets=_targets(target),
        groups=groups and str(groups),
        sampled_probes=False,
    )
    loaders = _loaders(names, pretrained, None, device)
    if test_data is None:
        images, train = _train_and_test(data, split, root, limit, on_error, seed)
    else:
        train, images = (_images(d, s, root, limit, on_error, seed) for d, s in ((data, split), (test_data, test_split)))
    study = Study(images, train, settings)
    # Tables that do not fit are told before any network runs.
    read_groups(settings.groups)
    if "targets" in settings.probes:
        study.find_targets()
    for load in loaders:
        study.read(load())
    study.probe()
    _deliver_probes(_found(study.results, what == "all"), out, as_json)


def _probes(what: str | None, few: Any, target: Any) -> tuple[str, ...]:
    """Analyses asked for: by name, or by the options that they alone have."""
    from mixer_probe.report.probe_study import WHAT, check_probes

    if what == "all":
        return WHAT
    named = () if what is None else tuple(name.strip() for name in what.split(","))
    implied = (["fewshot"] if few else []) + (["targets"] if target else [])
    return check_probes((*named, *implied) or ("accuracy",))


def _probe_method(name: str, option: str, *others: str) -> str:
    from mixer_probe.errors import closest
    from mixer_probe.probing.methods import FITTERS

    known = (*others, *FITTERS)
    if name not in known:
        raise MeasureError(f"{option} is one of {', '.join(known)}, not '{name}'; {closest(name, known)}")
    return name


def _shots(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    counts = [part.strip() for part in text.split(",")]
    if not all(count.isdecimal() and int(count) for count in counts):
        raise MeasureError(f"--shots is a list of positive numbers such as 1,5,10,25, not '{text}'")
    return tuple(sorted({int(count) for count in counts}))


def _targets(specs: Sequence[str] | None) -> tuple[str, ...]:
    from mixer_probe.report.probe_study import check_target

    return tuple(check_target(spec) for spec in dict.fromkeys(specs or ()))


def _found(results: Sequence[Result], anything: bool) -> list[Result]:
    """The results; what was asked for by name and left out is an error, unless `anything` that works is wanted."""
    from mixer_probe.report.skipped import Skipped

    skipped = [r for r in results if isinstance(r, Skipped)]
    if skipped and not (anything and len(skipped) < len(results)):
        raise MeasureError(skipped[0].reason)
    return list(results)


def _deliver_probes(results: Sequence[Result], out: Path | None, as_json: bool) -> None:
    """Files where a folder is given, and JSON, or sentences and the tables that no file holds."""
    from mixer_probe.report import make_sections

    frames = _frames(results)
    sections = make_sections(results) if out is None else _write_files(results, {}, out, "Where the class can be read")
    if out is not None:
        _write_paths(results, out)
    if as_json:
        rows = {name: json.loads(frame.to_json(orient="records")) for name, frame in frames.items()}
        # A single table is a list, as it was when there was no other.
        _print_json(rows if len(rows) > 1 else next(iter(rows.values())))
        return
    _print_sections(sections, tables=out is None)
    if out is not None:
        console.print(str((out / "report.html").resolve()), markup=False, highlight=False, soft_wrap=True)


@app.command(epilog="Example: mixer-probe weights zoo:mixer --what units,kernels --block 1 --out weights")
def weights(
    names: ModelNames,
    what: Annotated[
        str, typer.Option(help="anatomy, units, kernels, tying, stem, positions, spectra; several with commas, or all.")
    ] = "all",
    block: Annotated[int | None, typer.Option(help="Also draw this block alone; -1 is the last.")] = None,
    data: Annotated[str, typer.Option(help="Images for the kernels of Mixers and ViTs that tying measures on data.")] = "demo",
    split: Split = None,
    root: Root = None,
    limit: Limit = 64,
    on_error: OnError = "raise",
    pretrained: Pretrained = True,
    checkpoint: Checkpoint = None,
    baselines: Annotated[bool, typer.Option(help="Also look at every trained network with random weights.")] = True,
    device: Device = "cpu",
    seed: Seed = 0,
    out: Out = Path("weights"),
    as_json: AsJson = False,
) -> None:
    """What the weights alone say: token-mixing units, kernels and their tying, stem, positions, spectra, anatomy.

    Writes every figure as SVG and PNG, the numbers as CSV, results.json and report.html."""
    from mixer_probe.report.weight_study import block_path, block_pictures, check_what, weight_results

    chosen = None if what == "all" else check_what([name.strip() for name in what.split(",")])
    images = _images(data, split, root, limit, on_error, seed) if chosen is None or "tying" in chosen else None
    results: list[Result] = []
    drawn: dict[str, Figure] = {}
    for load in _loaders(names, pretrained, checkpoint, device):
        model = load()
        path = None if block is None else block_path(model, block)
        twins = [model.untrained()] if baselines and model.weights.trained else []
        found = weight_results([model, *twins], chosen, images)
        drawn |= {} if path is None else block_pictures([r for r in found if _is_of(r, model)], path)
        results += found
    _deliver_weights(results, drawn, out, as_json)


def _is_of(result: Any, model: Model) -> bool:
    return getattr(result, "model", None) == model.record


def _write_paths(results: Sequence[Result], out: Path) -> None:
    """A table of every value of the paths of all probes."""
    import pandas as pd

    from mixer_probe.probing import ProbeResult
    from mixer_probe.results import write_text_atomically

    paths = [r.path_frame() for r in results if isinstance(r, ProbeResult)]
    if paths:
        write_text_atomically(out / "linear-probes-path.csv", pd.concat(paths, ignore_index=True).to_csv(index=False))


def _deliver_weights(results: Sequence[Result], drawn: dict[str, Figure], out: Path, as_json: bool) -> None:
    """Files for all results, and tables of a few lines a network, or all rows as JSON."""
    sections = _write_files(results, drawn, out, "What the weights say")
    if as_json:
        rows = {name: json.loads(frame.to_json(orient="records")) for name, frame in _frames(results).items()}
        _print_json(rows)
        return
    _print_sections(sections)
    console.print(str((out / "report.html").resolve()), markup=False, highlight=False, soft_wrap=True)


def _write_files(results: Sequence[Result], drawn: dict[str, Figure], out: Path, title: str) -> list[Section]:
    """A table of each kind of result, results.json, the pictures of the report and those `drawn` besides, and the report."""
    from mixer_probe.report import make_sections, write_report
    from mixer_probe.report.section import Picture
    from mixer_probe.results import save_results, write_text_atomically

    _prepare(out)
    for name, frame in _frames(results).items():
        write_text_atomically(out / f"{name}.csv", frame.to_csv(index=False))
    settings = {"command": " ".join(["mixer-probe", *map(shlex.quote, sys.argv[1:])])}
    save_results(results, out / "results.json", settings)
    sections = make_sections(results)
    pictures = {p.file_name: p.figure for section in sections for p in section.content if isinstance(p, Picture)}
    for name, figure in (pictures | drawn).items():
        _save_picture(figure, out, name)
    write_report(results, out / "report.html", title=title, settings=settings)
    return sections


# Columns that a terminal has no room for: names, captions and sentences say the same.
_WIDE = ("trained", "kind", "p", "n", "n_test", "classes", "chance", "metric", "seeds", "orders", "draws")


def _print_sections(sections: Sequence[Section], tables: bool = False) -> None:
    """What the report says, in sentences, and its tables if asked for."""
    from mixer_probe.report.section import Table as ReportTable

    for section in sections:
        console.print(section.title, style="bold", markup=False, highlight=False)
        for paragraph in section.paragraphs:
            console.print(paragraph, markup=False, highlight=False, soft_wrap=True)
        for item in section.content if tables else ():
            if isinstance(item, ReportTable):
                kept = [i for i, name in enumerate(item.frame.columns) if name not in _WIDE]
                rows = [[row[i][0] for i in kept] for row in item.rows]
                _print_rows([item.header[i] for i in kept], rows)


def _frames(results: Sequence[Result]) -> dict[str, pd.DataFrame]:
    """One table for all results of a kind, by the title of the kind as a file name."""
    import pandas as pd

    kinds = dict.fromkeys(type(r) for r in results)
    tables = {kind: [r.to_frame() for r in results if type(r) is kind] for kind in kinds}
    return {kind.title.lower().replace(" ", "-"): pd.concat(t, ignore_index=True) for kind, t in tables.items()}


# -- reports -----------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: mixer-probe demo --out demo")
def demo(out: Out = Path("mixer-probe-demo"), device: Device = "auto", seed: Seed = 0) -> None:
    """All analyses of the bundled Mixer, ViT and ResNet on the bundled images: report.html and results.json."""
    settings = _study_settings("blocks", batch_size=50, seed=seed)
    images, train = _train_and_test("demo", None, None, None, "raise", seed)
    loaders = _loaders(DEMO_MODELS, True, None, device)
    title = "What a Mixer, a ViT and a ResNet learned from CIFAR-10"
    _write_study(loaders, images, train, settings, out, title, DEMO_MODELS, {"device": device})


@app.command(epilog="Example: mixer-probe report mixer_b16_224 vit_base_patch16_224 --data photos --out report")
def report(
    names: ModelNames,
    data: Data = "demo",
    layers: Layers = "blocks",
    split: Split = None,
    root: Root = None,
    limit: Limit = None,
    on_error: OnError = "raise",
    pretrained: Pretrained = True,
    checkpoint: Checkpoint = None,
    baselines: Annotated[bool, typer.Option(help="Also look at every trained network with random weights.")] = True,
    device: Device = "auto",
    autocast: Autocast = None,
    batch_size: BatchSize = 32,
    measure: Measures = "cka,procrustes,mutual_knn",
    permutations: Permutations = 100,
    resamples: Resamples = 100,
    seed: Seed = 0,
    out: Out = Path("mixer-probe-report"),
) -> None:
    """All analyses of the models of your choice: report.html and results.json."""
    measures = _measures(measure)
    images, train = _train_and_test(data, split, root, limit, on_error, seed)
    settings = _study_settings(
        layers,
        batch_size=batch_size,
        permutations=permutations,
        seed=seed,
        baselines=baselines,
        autocast=autocast,
        measures=measures,
        resamples=resamples,
    )
    loaders = _loaders(names, pretrained, checkpoint, device)
    loading = {"pretrained": pretrained, "checkpoint": checkpoint and str(checkpoint), "device": device}
    title = f"Inside {', '.join(names)}" if len(names) < 4 else f"Inside {len(names)} networks: {', '.join(names)}"
    _write_study(loaders, images, train, settings, out, title, names, loading)


def _write_study(
    loaders: Sequence[Callable[[], Model]],
    images: Images,
    train: Images | None,
    settings: StudySettings,
    out: Path,
    title: str,
    names: Sequence[str],
    loading: dict[str, Any],
) -> None:
    from mixer_probe.report import run_study, write_report
    from mixer_probe.results import save_results

    _prepare(out)
    results = run_study(loaders, images, train, settings, store=out / "runs")
    again = _how_again(names, images, train, settings, loading)
    save_results(results, out / "results.json", again)
    page = write_report(results, out / "report.html", title=title, settings=again)
    console.print(str(page.resolve()), markup=False, highlight=False, soft_wrap=True)


def _how_again(
    names: Sequence[str], images: Images, train: Images | None, settings: StudySettings, loading: dict[str, Any]
) -> dict[str, Any]:
    """The command line as given, the same as a script, and the settings as data."""
    from dataclasses import asdict

    from mixer_probe.results import to_dict

    arguments = "".join(f", {k}={v!r}" for k, v in loading.items() if v is not None)
    chosen = ",\n".join(f"    {k}={v!r}" for k, v in asdict(settings).items())
    listed = "\n".join(f"    {name!r}," for name in names)
    fit = "None" if train is None else f'mp.load_images("{train.name}", split="{train.split}")'
    source = f'mp.load_images("{images.name}", split={images.split or None!r}, limit={images.limit!r}, seed={images.seed})'
    script = f"""import mixer_probe as mp
from mixer_probe.report import StudySettings, run_study

names = [
{listed}
]
models = [mp.load_model(name{arguments}) for name in names]
images = {source}
train = {fit}
settings = StudySettings(
{chosen},
)
results = run_study(models, images, train, settings)
mp.write_report(results, "report.html")
"""
    command = " ".join(["mixer-probe", *map(shlex.quote, sys.argv[1:])])
    return {"command": command, "script": script, "images": to_dict(images.record), "study": asdict(settings)}


@app.command(name="app", epilog="Example: mixer-probe app")
def open_app(port: Annotated[int, typer.Option(help="Port on this machine.")] = 8501) -> None:
    """Open the app in the browser; it listens on this machine only."""
    import subprocess

    command = [sys.executable, "-m", "streamlit", "run", str(_app_file()), "--server.address", "localhost"]
    sys.exit(subprocess.call([*command, "--server.port", str(port), "--browser.gatherUsageStats", "false"]))


def _app_file() -> Path:
    package = Path(__file__).parent
    for candidate in (package / "_app" / "Home.py", package.parent / "app" / "Home.py"):
        if candidate.is_file():
            return candidate
    raise StoreError("the app is not part of this installation; install mixer_probe from its wheel or its repository")


# -- shared work -------------------------------------------------------------------------------------------------------


def _layers(text: str) -> str | list[str]:
    return text.split(",") if "," in text else text


def _study_settings(layers: str, **choices: Any) -> StudySettings:
    from mixer_probe.report import StudySettings

    chosen = _layers(layers)
    return StudySettings(chosen if isinstance(chosen, str) else tuple(chosen), **choices)


def _images(data: str, split: str | None, root: str | None, limit: int | None, on_error: str, seed: int) -> Images:
    from mixer_probe.images import load_images

    if on_error not in ("raise", "skip"):
        raise ImagesError(f"--on-error is raise or skip, not '{on_error}'")
    return load_images(data, split=split, limit=limit, seed=seed, root=root, on_error=on_error)  # type: ignore[arg-type]


def _train_and_test(
    data: str, split: str | None, root: str | None, limit: int | None, on_error: str, seed: int
) -> tuple[Images, Images | None]:
    """Images to look at, and images to fit probes on where the data set has its own (the bundled sample does)."""
    images = _images(data, split, root, limit, on_error, seed)
    if data == "demo" and images.split == "test":
        return images, _images(data, "train", root, limit, on_error, seed)
    return images, None


def _loaders(names: Sequence[str], pretrained: bool, checkpoint: Path | None, device: str) -> list[Callable[[], Model]]:
    from mixer_probe.models import check_name, load_model

    if checkpoint is not None and len(names) > 1:
        raise StoreError(f"--checkpoint is for one model, and {len(names)} are given")
    for name in names:
        check_name(name)
    return [partial(load_model, name, pretrained=pretrained, checkpoint=checkpoint, device=device) for name in names]


def _representations(
    source: str,
    *,
    load: Callable[[], Images],
    layers: str | None,
    reduce: str | None,
    pretrained: bool,
    device: str,
    autocast: str | None,
    batch_size: int,
) -> Representations:
    """Of a model by name, or of a stored run by path."""
    import mixer_probe as mp

    if Path(source).is_dir():
        return _stored(source, layers, reduce)
    model = mp.load_model(source, pretrained=pretrained, device=device)
    chosen = _layers(layers or "blocks")
    kept: Any = reduce or "mean"
    return mp.extract(model, load(), chosen, reduce=kept, batch_size=batch_size, autocast=autocast)


def _stored(source: str, layers: str | None, reduce: str | None) -> Representations:
    """A stored run, or some layers of it. Raises MeasureError if its positions were reduced in another way."""
    import mixer_probe as mp

    run = mp.open_run(source)
    if reduce not in (None, run.reduce):
        raise MeasureError(f"the run {source} holds positions reduced by '{run.reduce}', not '{reduce}': extract it again")
    return run if layers is None else run.only(layers.split(","))


def _prepare(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {out}: {error.strerror or error}") from error


def _print_frame(frame: pd.DataFrame) -> None:
    rows = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in frame.itertuples(index=False)]
    _print_rows([str(column).replace("_", " ") for column in frame.columns], rows)


def _print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in header:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _print_json(content: Any) -> None:
    console.file.write(json.dumps(content, indent=1) + "\n")

"""All analyses at once: `demo`, `report`, `render` and `app`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixer_probe.cli.options import (
    DEMO_MODELS,
    Baselines,
    Device,
    ImageOptions,
    Measures,
    ModelNames,
    ModelOptions,
    Out,
    PassOptions,
    Permutations,
    Resamples,
    Seed,
    Workers,
    command,
)
from mixer_probe.cli.output import command_line, print_report
from mixer_probe.cli.similarity import measure_names
from mixer_probe.core.errors import StoreError
from mixer_probe.parallel import ranks

if TYPE_CHECKING:
    from mixer_probe.images import Images
    from mixer_probe.models import Model
    from mixer_probe.study import StudySettings


@command("demo --out demo")
def demo(out: Out = Path("mixer-probe-demo"), device: Device = "auto", seed: Seed = 0) -> None:
    """Run all analyses of the bundled Mixer, ViT and ResNet on the bundled images; writes
    report.html and results.json."""
    from mixer_probe.core.threads import available_cores
    from mixer_probe.models.load import resolve_device

    settings = PassOptions(batch_size=50).settings(seed=seed)
    images, train = ImageOptions(seed=seed).train_and_test()
    workers = (
        min(available_cores(), len(DEMO_MODELS)) if resolve_device(device).type == "cpu" else 1
    )
    loaders = ModelOptions(device=device).loaders(DEMO_MODELS)
    title = "Representations of a Mixer, a ViT and a ResNet trained on CIFAR-10"
    _write_study(loaders, images, train, settings, out, title, workers, findings=True)


@command("report mixer_b16_224 vit_base_patch16_224 --data photos --out report")
def report(
    names: ModelNames,
    source: ImageOptions = ImageOptions(),
    passes: PassOptions = PassOptions(batch_size=32),
    models: ModelOptions = ModelOptions(),
    baselines: Baselines = True,
    measure: Measures = "cka,procrustes,mutual_knn",
    permutations: Permutations = 999,
    resamples: Resamples = 100,
    workers: Workers = 1,
    out: Out = Path("mixer-probe-report"),
) -> None:
    """All analyses of the models of your choice: report.html and results.json.

    What is finished is kept in the folder, and the same command goes on with it after an interrupt,
    a full disk, or a model that could not be loaded."""
    measures = measure_names(measure)
    images, train = source.train_and_test()
    settings = passes.settings(
        permutations=permutations,
        seed=source.seed,
        baselines=baselines,
        measures=measures,
        resamples=resamples,
    )
    loaders = models.loaders(names)
    passes.check_layers(loaders)
    title = (
        f"Analysis of {', '.join(names)}"
        if len(names) < 4
        else f"Analysis of {len(names)} networks: {', '.join(names)}"
    )
    _write_study(loaders, images, train, settings, out, title, workers)


def _write_study(
    loaders: Sequence[partial[Model]],
    images: Images,
    train: Images | None,
    settings: StudySettings,
    out: Path,
    title: str,
    workers: int,
    findings: bool = False,
) -> None:
    """Files of a report; with `findings` what the networks have in common, and where they differ,
    comes first."""
    from mixer_probe.core.files import remove_leftovers
    from mixer_probe.core.result import FILE_NAME, results_text
    from mixer_probe.report import make_sections, narrate
    from mixer_probe.report.drawing import draw_in_parallel
    from mixer_probe.report.export import exporting
    from mixer_probe.report.html import report_page
    from mixer_probe.study import ResultCache, fill_steps, run_study

    store, steps = out / "runs", ResultCache(out / "parts")
    if not ranks().first:
        run_study(loaders, images, train, settings, store, steps)
        return
    with exporting(out) as export:
        remove_leftovers(steps.folder)
        if workers > 1 and ranks().world == 1:
            fill_steps(loaders, images, train, settings, store, steps, workers)
        results = run_study(loaders, images, train, settings, store, steps)
        if findings:
            results = [narrate(results), *results]
        again = _how_again(loaders, images, train, settings, findings)
        export.write(FILE_NAME, results_text(results, again, title))
        sections = make_sections(results)
        draw_in_parallel(sections, workers)
        export.write("report.html", report_page(sections, results, title, again))
    print_report(out)


def _how_again(
    loaders: Sequence[partial[Model]],
    images: Images,
    train: Images | None,
    settings: StudySettings,
    findings: bool,
) -> dict[str, Any]:
    """The command line as given, the same as a script, and the settings as data."""
    from dataclasses import asdict

    from mixer_probe.core.result import to_dict

    chosen = ",\n".join(f"    {k}={v!r}" for k, v in asdict(settings).items())
    listed = "\n".join(f"    mp.load_model({written(loader)})," for loader in loaders)
    fit = "None" if train is None else f'mp.load_images("{train.name}", split="{train.split}")'
    source = (
        f'mp.load_images("{images.name}", split={images.split or None!r}, limit={images.limit!r}, '
        f"seed={images.seed})"
    )
    imported = "from mixer_probe.report import narrate\n" if findings else ""
    reported = "[narrate(results), *results]" if findings else "results"
    script = f"""import mixer_probe as mp
{imported}from mixer_probe.study import StudySettings, run_study

models = [
{listed}
]
images = {source}
train = {fit}
settings = StudySettings(
{chosen},
)
results = run_study(models, images, train, settings)
mp.write_report({reported}, "report.html")
"""
    return {
        "command": command_line(),
        "script": script,
        "images": to_dict(images.record),
        "study": asdict(settings),
    }


def written(loader: partial[Model]) -> str:
    """The arguments as Python."""
    return ", ".join(
        [*map(repr, loader.args), *(f"{name}={value!r}" for name, value in loader.keywords.items())]
    )


@command("render mixer-probe-demo --out rendered")
def render(
    saved: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS...", help="Results files, or folders of reports."),
    ],
    title: Annotated[
        str | None, typer.Option(help="Title of the report (default: that of the saved one).")
    ] = None,
    out: Out = Path("mixer-probe-render"),
) -> None:
    """Render the report, figures and tables of saved results; needs neither models nor images."""
    from mixer_probe.core.result import open_results
    from mixer_probe.report import export_report

    found = [open_results(path) for path in saved]
    results = [result for one in found for result in one.results]
    own_title = (
        found[0].title or "Saved results" if len(found) == 1 else f"Results of {len(found)} files"
    )
    settings = found[0].settings if len(found) == 1 else {"command": command_line()}
    export_report(results, out, title or own_title, settings)
    print_report(out)


@command("app runs/ photos/ checkpoints/", name="app")
def open_app(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="Folders with images, checkpoints, stored runs or reports that the app may open.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8501,
) -> None:
    """Open the app in the browser; it listens on this machine only, and reads files below the given
    PATHs only."""
    import os

    for path in paths or ():
        if not path.exists():
            raise StoreError(
                f"there is no {path} for the app to open; give existing folders or files"
            )
    package = Path(__file__).parent.parent
    served = [
        file
        for file in (package / "_app" / "served.py", package.parent / "app" / "served.py")
        if file.is_file()
    ]
    if not served:
        raise StoreError(
            "the app is not part of this installation; install mixer_probe from its wheel or its "
            "repository"
        )
    chosen = [str(path.resolve()) for path in paths or ()]
    process = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(served[0]),
        *server_options(port),
        "--",
        *chosen,
    ]
    if os.name == "nt":
        import subprocess

        sys.exit(subprocess.call(process))
    sys.stdout.flush()
    # In place of this process, so that a signal to it ends the server.
    os.execv(sys.executable, process)


def server_options(port: int) -> list[str]:
    """Streamlit's options for an app that this machine alone may open. On the command line no
    config.toml can loosen them."""
    options = {
        "server.address": ["localhost"],
        "server.port": [str(port)],
        # Another site that resolves to this machine (DNS rebinding), or that opens a connection to
        # it, is refused.
        "server.allowedHosts": ["localhost", "127.0.0.1", "::1"],
        "server.corsAllowedOrigins": [f"http://localhost:{port}"],
        "server.enableCORS": ["true"],
        "server.enableXsrfProtection": ["true"],
        "server.enableStaticServing": ["false"],
        "global.developmentMode": ["false"],
        "client.showErrorDetails": ["type"],
        "browser.gatherUsageStats": ["false"],
    }
    return [
        part
        for name, values in options.items()
        for value in values
        for part in (f"--{name}", value)
    ]

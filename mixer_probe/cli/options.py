"""The typer application, its consoles, and the options that commands share.

A parameter of a command whose type is a dataclass stands for the options that are its fields:
`command` tells typer of each."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console

from mixer_probe.core.errors import MixerProbeWarning, ModelError
from mixer_probe.core.files import printable, reason
from mixer_probe.core.text import visible
from mixer_probe.core.validate import LARGEST_SEED

if TYPE_CHECKING:
    from mixer_probe.images import Images
    from mixer_probe.models import Model
    from mixer_probe.study import StudySettings

app = typer.Typer(
    help="What did an MLP-Mixer learn, and how does that differ from a ViT and a CNN?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


class VisibleConsole(Console):
    """Prints names so that nothing in them steers the terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does, with what `visible` escapes escaped."""
        super().print(
            *(visible(thing) if isinstance(thing, str) else thing for thing in objects), **options
        )

    def line_of(self, text: str, **options: Any) -> None:
        """Print a text as it is: no markup, no highlights, no line breaks of its own."""
        self.print(text, markup=False, highlight=False, soft_wrap=True, **options)

    def warn(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        """Print a warning of mixer_probe in one line, and no other; in place of
        `warnings.showwarning`."""
        if issubclass(category, MixerProbeWarning):
            self.line_of(f"warning: {message}", style="yellow")


console = VisibleConsole()
errors = VisibleConsole(stderr=True)


def command(
    example: str, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command of the application, with an example at the end of its help.

    A parameter that is a dataclass becomes one option per field, with the values of its default
    instance as defaults."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        given = inspect.signature(function).parameters
        groups = {key: hints[key] for key in given if is_dataclass(hints[key])}
        fields = {key: get_type_hints(group, include_extras=True) for key, group in groups.items()}
        parameters = []
        for key, parameter in given.items():
            for field, hint in fields.get(key, {key: hints[key]}).items():
                default = getattr(parameter.default, field) if key in groups else parameter.default
                parameters.append(
                    inspect.Parameter(
                        field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint
                    )
                )

        def run(**values: Any) -> None:
            made = {
                key: group(**{field: values.pop(field) for field in fields[key]})
                for key, group in groups.items()
            }
            function(**made, **values)

        run.__doc__, run.__name__ = function.__doc__, function.__name__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app.command(name=name, epilog=f"Example: mixer-probe {example}")(run)
        return function

    return register


def folder(given: str | Path) -> Path:
    """The path that a person wrote for what is made; not that of the working directory for a text
    that is empty."""
    if not str(given).strip():
        raise typer.BadParameter(
            "the name of the folder is empty; give a name, or . for this folder"
        )
    return Path(given)


def parts(text: str) -> list[str]:
    """The values of an option that takes several with commas."""
    return [part.strip() for part in text.split(",")]


# What the command line says of a network in options of its own.
_OWN = ("model", "pretrained", "checkpoint", "device", "channels_last", "compiled")
DEMO_MODELS = ("zoo:mixer-s0", "zoo:vit-s0", "zoo:resnet-s0")

# -- single options --------------------------------------------------------------------------------

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="timm name or name.tag, zoo:NAME, hf-hub:OWNER/REPO or local-dir:FOLDER.",
    ),
]
ModelNames = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="timm names or name.tags, zoo:NAME, hf-hub:OWNER/REPO, local-dir:FOLDER.",
    ),
]
Baselines = Annotated[
    bool,
    typer.Option(
        help="Also analyse the untrained baseline of every trained network (and raw pixels)."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="At most this many images, balanced over classes.")
]
Measures = Annotated[
    str,
    typer.Option(
        help="A measure, several with commas, or all; cka, procrustes, mutual_knn, rsa, ..."
    ),
]
Permutations = Annotated[
    int, typer.Option(min=0, help="Random pairings of the images for the null.")
]
Resamples = Annotated[
    int,
    typer.Option(
        min=0, help="Groups of images for the jackknife intervals; for CKA every single image."
    ),
]
Workers = Annotated[
    int,
    typer.Option(min=1, help="Networks analysed in parallel, in processes that divide the cores."),
]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of every random draw.")]
Out = Annotated[
    Path,
    typer.Option(
        help="Folder for figures, tables, results.json and report.html.",
        parser=folder,
        metavar="PATH",
    ),
]
OptionalOut = Annotated[
    Path | None,
    typer.Option(
        help="Folder for figures, tables, results.json and report.html.",
        parser=folder,
        metavar="PATH",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]

# -- options that belong together ------------------------------------------------------------------


@dataclass(frozen=True)
class ModelOptions:
    """How networks are loaded."""

    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained/--no-pretrained", help="Use pretrained weights or untrained ones."
        ),
    ] = True
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]FILE",
            help="A safetensors, torch or npz file of a model's weights; once per model.",
        ),
    ] = None
    model_args: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]JSON",
            help=(
                """Arguments of timm, such as '{"patch_size": 8, "num_blocks": 4, """
                """"embed_dim": 64}'; once per model."""
            ),
        ),
    ] = None
    class_names: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]NAMES",
            help=(
                "Class names of a model's outputs, in order: a text file with one name per line, "
                "or comma-separated names; once per model."
            ),
        ),
    ] = None
    device: Device = "auto"
    channels_last: Annotated[
        bool,
        typer.Option(
            "--channels-last",
            help="Convolutions compute with channels as the last axis in memory, for CNNs.",
        ),
    ] = False
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help=(
                "Run blocks through torch.compile where nothing inside of them is captured; on a "
                "CPU it gains at most 10 %."
            ),
        ),
    ] = False

    def loaders(self, names: Sequence[str]) -> list[partial[Model]]:
        """One `load_model` per network. Raises ModelError, for an unknown name before anything is
        loaded."""
        from mixer_probe.models import check_name, load_model

        # Reports repeat what is given here.
        chosen = {"channels_last": self.channels_last, "compiled": self.compiled}
        asked = {option: True for option, value in chosen.items() if value}
        arguments: dict[str, dict[str, Any]] = {
            name: {"pretrained": self.pretrained, "device": self.device, **asked} for name in names
        }
        for name, file in _by_name("--checkpoint", self.checkpoint, names).items():
            arguments[name]["checkpoint"] = file
        for name, text in _by_name("--model-args", self.model_args, names).items():
            try:
                given = json.loads(text)
            except ValueError:
                given = None
            if not isinstance(given, dict) or any(option in given for option in _OWN):
                raise ModelError(
                    "--model-args takes arguments of timm as a JSON object, such as "
                    f"""'{{"patch_size": 8}}', without those """
                    f"that are options of their own ({', '.join(_OWN)}), not {text}"
                )
            arguments[name] |= given
        for name, text in _by_name("--class-names", self.class_names, names).items():
            # The lines of a file, or the parts of a text with commas.
            try:
                listed = "," in text and not os.path.isfile(text)
                outputs = (
                    text.split(",")
                    if listed
                    else Path(text).read_text(encoding="utf-8").strip("\n").split("\n")
                )
            except (OSError, ValueError) as error:
                raise ModelError(
                    "--class-names is a text file with one name per line, or names with commas, "
                    f"one for each output in order; {printable(text)} is neither "
                    f"({reason(error) if isinstance(error, OSError) else 'it is no UTF-8 text'})"
                ) from error
            found = arguments[name]["class_names"] = tuple(output.strip() for output in outputs)
            if "" in found:
                raise ModelError(
                    f"--class-names: name {found.index('') + 1} of {len(found)} is empty; give one "
                    "for each output in order"
                )
        for name in names:
            check_name(name)
        return [partial(load_model, name, **arguments[name]) for name in names]


@dataclass(frozen=True)
class ImageOptions:
    """Which images are taken."""

    data: Annotated[
        str | None,
        typer.Option(
            help=(
                "demo (default), photos, a folder of images, or a timm data set (torch/..., "
                "hfds/..., wds/...)."
            )
        ),
    ] = None
    split: Annotated[
        str | None, typer.Option(help="Split of the data set, such as train, test or validation.")
    ] = None
    root: Annotated[str | None, typer.Option(help="Directory of a timm data set.")] = None
    limit: Limit = None
    on_error: Annotated[
        str, typer.Option(help="raise, or skip: skip unreadable images and count them.")
    ] = "raise"
    seed: Seed = 0

    def load(self) -> Images:
        """The images. Raises ImagesError."""
        from mixer_probe.images import load_images

        options: dict[str, Any] = {
            "limit": self.limit,
            "seed": self.seed,
            "root": self.root,
            "on_error": self.on_error,
        }
        return load_images("demo" if self.data is None else self.data, split=self.split, **options)

    def train_and_test(self) -> tuple[Images, Images | None]:
        """Images to analyse, and images to fit probes on where the data set has its own (the
        bundled sample does)."""
        from dataclasses import replace

        images = self.load()
        own = self.data in (None, "demo") and images.split == "test"
        return images, replace(self, split="train").load() if own else None


@dataclass(frozen=True)
class PassOptions:
    """How images go through a network, and what is captured."""

    layers: Annotated[
        str | None,
        typer.Option(
            help=(
                "blocks (default; for a stored run all its layers), spatial, channel, all, a kind, "
                "a name or a glob; several with commas."
            )
        ),
    ] = None
    autocast: Annotated[
        str | None, typer.Option(help="bfloat16 or float16: run the network in mixed precision.")
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64
    decoders: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=(
                "Processes that decode images (default: with a GPU one per core, at most 8; else "
                "none)."
            ),
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.decoders is not None:
            from mixer_probe.core.threads import use_decoders

            use_decoders(self.decoders)

    @property
    def chosen(self) -> str | list[str]:
        """The layers as `extract` takes them."""
        layers = self.layers or "blocks"
        return layers.split(",") if "," in layers else layers

    def check_layers(self, loaders: Sequence[partial[Model]]) -> None:
        """Raise LayerError for layers that one of the networks lacks, before any work. No weights
        are read."""
        if self.layers not in (None, "blocks", "all"):
            for model in without_weights(loaders):
                model.select(self.chosen)

    def settings(self, **choices: Any) -> StudySettings:
        """Settings of a study, with its other `choices` by name."""
        from mixer_probe.study import StudySettings

        layers = self.chosen if isinstance(self.chosen, str) else tuple(self.chosen)
        return StudySettings(layers, autocast=self.autocast, batch_size=self.batch_size, **choices)


def without_weights(loaders: Sequence[partial[Model]]) -> Iterator[Model]:
    """The networks that can be built, untrained."""
    for load in loaders:
        with suppress(ModelError):  # reported when it is loaded
            yield partial(load, pretrained=False, checkpoint=None)()


# -- values of options -----------------------------------------------------------------------------


def _by_name(option: str, values: Sequence[str] | None, names: Sequence[str]) -> dict[str, str]:
    """Values of an option that is given as MODEL=VALUE, or as VALUE for the only model there is."""
    found: dict[str, str] = {}
    for text in values or ():
        name = next(
            (n for n in sorted(names, key=len, reverse=True) if text.startswith(f"{n}=")), None
        )
        if name is None and len(set(names)) > 1:
            raise ModelError(
                f"{option} {text} is for one of {len(names)} models; give {option} MODEL={text} "
                f"for {' or '.join(names)}"
            )
        if (name or names[0]) in found:
            raise ModelError(
                f"{option} is given twice for {name or names[0]}; give it once per model"
            )
        found[name or names[0]] = text.removeprefix(f"{name}=")
    return found

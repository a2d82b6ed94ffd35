"""The typer application, its consoles, and the options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mixer_probe.core.text import visible
from mixer_probe.core.validate import LARGEST_SEED

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
        super().print(*(visible(thing) if isinstance(thing, str) else thing for thing in objects), **options)


console = VisibleConsole()
errors = VisibleConsole(stderr=True)


def folder(given: str | Path) -> Path:
    """The path that a person wrote for what is made; not that of the working directory for a text that is empty."""
    if not str(given).strip():
        raise typer.BadParameter("the name of the folder is empty; give a name, or . for this folder")
    return Path(given)


DEMO_MODELS = ("zoo:mixer-s0", "zoo:vit-s0", "zoo:resnet-s0")

# -- options that several commands share -------------------------------------------------------------------------------

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="timm name or name.tag, zoo:NAME, hf-hub:OWNER/REPO or local-dir:FOLDER.")
]
ModelNames = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="timm names or name.tags, zoo:NAME, hf-hub:OWNER/REPO, local-dir:FOLDER.")
]
Pretrained = Annotated[bool, typer.Option("--pretrained/--no-pretrained", help="Use pretrained weights or untrained ones.")]
Checkpoint = Annotated[
    list[str] | None,
    typer.Option(metavar="[MODEL=]FILE", help="A safetensors, torch or npz file of a model's weights; once per model."),
]
ModelArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--model-args",
        metavar="[MODEL=]JSON",
        help="""Arguments of timm, such as '{"patch_size": 8, "num_blocks": 4, "embed_dim": 64}'; once per model.""",
    ),
]
ClassNames = Annotated[
    list[str] | None,
    typer.Option(
        "--class-names",
        metavar="[MODEL=]NAMES",
        help=(
            "Class names of a model's outputs, in order: a text file with one name per line, or comma-separated names; once "
            "per model."
        ),
    ),
]
Data = Annotated[str, typer.Option(help="demo, photos, a folder of images, or a timm data set (torch/..., hfds/..., wds/...).")]
Split = Annotated[str | None, typer.Option(help="Split of the data set, such as train, test or validation.")]
Root = Annotated[str | None, typer.Option(help="Directory of a timm data set.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most this many images, balanced over classes.")]
OnError = Annotated[str, typer.Option(help="raise, or skip: skip unreadable images and count them.")]
Device = Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")]
Autocast = Annotated[str | None, typer.Option(help="bfloat16 or float16: run the network in mixed precision.")]
LAYERS = "blocks, spatial, channel, all, a kind, a name or a glob; several with commas."
Layers = Annotated[str, typer.Option(help=LAYERS)]
Measures = Annotated[str, typer.Option(help="A measure, several with commas, or all; cka, procrustes, mutual_knn, rsa, ...")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per forward pass.")]
Permutations = Annotated[int, typer.Option(min=0, help="Random pairings of the images for the null.")]
Resamples = Annotated[int, typer.Option(min=0, help="Groups of images for the jackknife intervals; for CKA every single image.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of every random draw.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.", parser=folder, metavar="PATH")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]

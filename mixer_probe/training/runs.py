"""`Run`: a finished training run in a folder: card, training curve, weights and checkpoints."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import platform
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save as to_safetensors
from torch import nn

from mixer_probe.core.errors import CheckpointError, StoreError
from mixer_probe.core.files import write_bytes, write_text
from mixer_probe.models import Model, load_model
from mixer_probe.training.recipe import Recipe, first_difference
from mixer_probe.zoo.cards import Card, card_from_json
from mixer_probe.zoo.networks import load_weights, read_checkpoint

# The settings that decide which weights a network has.
_NETWORK = ("network", "arguments")


class CurvePoint(NamedTuple):
    """After `step` steps: mean training loss since the point before (NaN at step 0), and the
    accuracy on the test images of the curve."""

    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Run:
    """A finished run in `folder`; `card` says how it was made and how accurate it is."""

    folder: Path
    card: Card

    @classmethod
    def find(cls, folder: Path) -> Run | None:
        """The finished run in the folder, None where there is none. Raises StoreError for a card
        that cannot be read."""
        file = folder / "card.json"
        if not file.exists():
            return None
        try:
            return cls(folder, card_from_json(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(f"the card {file} cannot be read: {error}") from error

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The finished run in the folder. Raises StoreError where there is none."""
        run = cls.find(folder)
        if run is None:
            raise StoreError(f"there is no finished run in {folder}: it has no card.json")
        return run

    @property
    def accuracy(self) -> float:
        """Fraction of all test images that the final network classifies correctly."""
        return self.card.test_accuracy

    @cached_property
    def curve(self) -> tuple[CurvePoint, ...]:
        """The training curve, by step."""
        with open(self.folder / "curve.csv", encoding="utf-8", newline="") as stream:
            return tuple(
                CurvePoint(int(row["step"]), float(row["loss"]), float(row["accuracy"]))
                for row in csv.DictReader(stream)
            )

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps of the stored checkpoints, ascending."""
        files = (self.folder / "checkpoints").glob("*.safetensors")
        return tuple(sorted(int(file.stem) for file in files))

    def model(self, recipe: Recipe, step: int | None = None) -> Model:
        """The network after the training, or after `step` steps, as `load_model` gives it, whose
        untrained baseline has the initial weights of the run. Raises
        CheckpointError for a step that was not stored, and for weights that the card does not
        describe or that are of another network than the recipe's."""
        asked = recipe.settings()
        own, other = ({key: found[key] for key in _NETWORK} for found in (self.card.recipe, asked))
        if difference := first_difference(own, other):
            raise CheckpointError(f"{self.folder} holds another network: {difference}")
        if step is None:
            file, sha256 = self.folder / "model.safetensors", self.card.sha256
            name = self.folder.name
        else:
            file, sha256 = self.folder / "checkpoints" / f"{step}.safetensors", None
            name = f"{self.folder.name} step {step}"
            if step not in self.checkpoints:
                stored = ", ".join(map(str, self.checkpoints)) or "none"
                raise CheckpointError(
                    f"{self.folder} has no checkpoint of step {step}; stored: {stored}"
                )
        network = self._build(recipe)
        load_weights(network, read_checkpoint(file, sha256))
        model = self._loaded(network, name, trained=step != 0)
        model.make_untrained = lambda: self._loaded(self._build(recipe), name, trained=False)
        return model

    def _build(self, recipe: Recipe) -> nn.Module:
        return recipe.build(len(self.card.class_names)).requires_grad_(True)

    def _loaded(self, network: nn.Module, name: str, trained: bool) -> Model:
        model = load_model(
            network.eval(),
            device="cpu",
            input_size=self.card.input_size,
            mean=self.card.mean,
            std=self.card.std,
            crop_pct=1.0,
            class_names=self.card.class_names,
            name=name,
        )
        model.weights = replace(model.weights, trained=trained)
        return model


def rounded(values: torch.Tensor, significant_bits: int) -> torch.Tensor:
    """The nearest numbers with so many significant bits, ties to even, as float16."""
    if significant_bits < 11:
        mantissa, exponent = torch.frexp(values)
        values = torch.ldexp(torch.round(mantissa * 2**significant_bits), exponent) / (
            2**significant_bits
        )
    return values.half()


def write_weights(model: nn.Module, file: Path, significant_bits: int) -> str:
    """Write the state dict as safetensors, floating point as float16 with so many significant bits;
    returns the SHA-256 of the file."""
    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    state = {
        k: rounded(v, significant_bits) if v.is_floating_point() else v for k, v in state.items()
    }
    content = to_safetensors(state, metadata={"format": "pt"})
    write_bytes(file, content)
    return hashlib.sha256(content).hexdigest()


def write_curve(curve: list[CurvePoint], file: Path) -> None:
    """The curve as CSV: step, loss, accuracy."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CurvePoint._fields)
    writer.writerows((p.step, f"{p.loss:.6g}", f"{p.accuracy:.6g}") for p in curve)
    write_text(file, text.getvalue())


def initial_norm(model: nn.Module) -> float:
    """L2 norm of all parameters."""
    parameters = nn.utils.parameters_to_vector(model.parameters())
    return math.sqrt(float(parameters.detach().double().square().sum()))


def machine(device: torch.device) -> str:
    """The accelerator's name, or how many cores of which kind."""
    if device.type == "cuda":
        return f"one {torch.cuda.get_device_name(device)}"
    cores = torch.get_num_threads()
    return f"{cores} {platform.machine()} CPU core{'s' if cores > 1 else ''}"

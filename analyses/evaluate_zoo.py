"""Do the cards of the bundled networks hold? Each network on the 5,000 CIFAR-10 test images,
through timm's own road.

    python analyses/evaluate_zoo.py --data CIFAR10

CIFAR10 holds test/<class>/ with images of any format. Nothing is shared with the training: timm
reads the folder and normalises with the card's mean and std. Prints card against measurement, and
exits with 1 where they differ by more than 0.1 points. With --out, the table is also written there
as zoo.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from timm.data import create_transform
from timm.data.dataset import ImageDataset
from timm.data.readers.img_extensions import add_img_extensions
from torch import nn
from torch.utils.data import DataLoader

from mixer_probe import zoo

TOLERANCE = 0.001


def main() -> None:
    """Evaluate every bundled network and compare it with its card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with test/<class>/")
    parser.add_argument("--out", type=Path, help="folder for zoo.csv")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    options = parser.parse_args()
    table = pd.DataFrame([row(name, options.data / "test", options.device) for name in zoo.names()])
    Console().print(table.to_string(index=False))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / "zoo.csv", index=False)
    if not table["holds"].all():
        raise SystemExit(1)


def row(name: str, folder: Path, device: str) -> dict[str, object]:
    """One network's card against its measured accuracy."""
    card = zoo.card(name)
    images = loader(folder, card)
    measured = accuracy(zoo.load(name).to(device), images, device)
    holds = (
        len(images.dataset) == card.test_images and abs(measured - card.test_accuracy) <= TOLERANCE
    )
    return {
        "network": name,
        "images": len(images.dataset),
        "card": card.test_accuracy,
        "measured": measured,
        "holds": holds,
    }


def loader(folder: Path, card: zoo.Card) -> DataLoader:
    """The images of a folder with class folders, resized to the card's input size (here: as they
    are), normalised."""
    add_img_extensions(".webp")
    transform = create_transform(card.input_size, mean=card.mean, std=card.std, crop_pct=1.0)
    return DataLoader(ImageDataset(str(folder), transform=transform), batch_size=500)


@torch.inference_mode()
def accuracy(model: nn.Module, images: DataLoader, device: str) -> float:
    """Share of the images whose largest logit is that of their label."""
    right = [
        (model(batch.to(device)).argmax(dim=1).cpu() == labels).float() for batch, labels in images
    ]
    return float(torch.cat(right).mean())


if __name__ == "__main__":
    main()

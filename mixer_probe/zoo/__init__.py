"""The bundled reference networks: small checkpoints, and the card that says how each of them was
trained."""

from mixer_probe.zoo.cards import Card, card
from mixer_probe.zoo.networks import build, load, names

__all__ = ["Card", "build", "card", "load", "names"]

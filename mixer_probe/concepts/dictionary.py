"""Sparse dictionaries of one layer each of one or several networks: one code of a few active atoms
for the same position of the same image.

Every network has an encoder and a decoder. The code of a position by the encoder of network i,

    z_i = TopK(ReLU(E_i (x_i - c_i) + b_i)),

keeps its `active` largest entries (Makhzani and Frey 2014; Gao et al. 2024), and every network's
activations are decoded from it, x_j ~ D_j z_i + c_j. Training minimises the mean over all pairs
(i, j) of the squared error, so that an atom means the same in all networks that have it, and its
decoder is zero in those that do not (a universal sparse autoencoder: Thasarathan et al. 2025).
Activations are centred, and divided by the root of their total variance, so that networks weigh the
same. Atoms have unit norm over all decoders together. A dictionary of one network is a TopK sparse
autoencoder.

After every epoch of the first part of the training, copies of an atom (cosine of the decoders above
0.9) are merged, each encoder keeping the copy that it uses more; atoms that were never active, and
copies, start anew from positions that are reconstructed badly (as in Bricken et al. 2023).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_probe.concepts.grid_activations import GridActivations
from mixer_probe.core.errors import MeasureError, StoreError
from mixer_probe.core.files import write_bytes
from mixer_probe.core.fingerprint import check_same_images, digest
from mixer_probe.core.memory import slices
from mixer_probe.core.progress import task
from mixer_probe.core.validate import checked
from mixer_probe.models.load import resolve_device

# Positions that are shuffled together, and that atoms start anew from.
BUFFER, SAMPLE = 2**15, 2**12
COPY = 0.9
# Networks with a smaller fraction of a new atom do not encode it.
FAINT = 0.1
# Fractions of the training: with a rising learning rate, with a falling one, and with new atoms.
WARMUP, DECAY, RENEWAL = 0.05, 0.3, 0.7
_SEEDS = 1_000_003


@checked(MeasureError)
@dataclass(frozen=True)
class DictionaryRecipe:
    """How a dictionary is trained: `atoms` of which `active` are in a code, by Adam with batches of
    positions; `seed` is that of the first atoms and of the order of positions."""

    atoms: int = 128
    active: int = 8
    epochs: int = 10
    batch_size: int = 1024
    learning_rate: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.atoms:
            raise MeasureError(
                f"a code has from 1 to all {self.atoms} atoms active, not {self.active}"
            )
        if not 0 < self.learning_rate < math.inf:
            raise MeasureError(f"a learning rate is above 0, not {self.learning_rate:g}")


class Dictionary(nn.Module):
    """A dictionary of networks with `widths` channels. `means` [sum of widths] and `scales`
    [network] make activations normalised; `encoder` [atom, sum of widths], `bias` [network, atom],
    `decoder` [atom, sum of widths], and `origin` [sum of widths], what a code of zeros stands
    for."""

    means: Tensor
    scales: Tensor

    def __init__(self, widths: Sequence[int], atoms: int, active: int) -> None:
        super().__init__()
        self.widths, self.active = tuple(widths), active
        self.encoder = nn.Parameter(torch.zeros(atoms, sum(widths)))
        self.bias = nn.Parameter(torch.zeros(len(widths), atoms))
        self.decoder = nn.Parameter(torch.zeros(atoms, sum(widths)))
        self.origin = nn.Parameter(torch.zeros(sum(widths)))
        self.register_buffer("means", torch.zeros(sum(widths)))
        self.register_buffer("scales", torch.ones(len(widths)))

    @property
    def atoms(self) -> int:
        """Atoms."""
        return len(self.decoder)

    def by_network(self, x: Tensor) -> tuple[Tensor, ...]:
        """`x` [..., sum of widths] divided among the networks."""
        return torch.split(x, list(self.widths), -1)

    def normalised(self, network: int, x: Tensor) -> Tensor:
        """Activations [position, channel] of a network, centred, with a total variance of 1 over
        the images of the training."""
        found: Tensor = (x - self.by_network(self.means)[network]) / self.scales[network]
        return found

    def restored(self, network: int, x: Tensor) -> Tensor:
        """The inverse of `normalised`."""
        found: Tensor = x * self.scales[network] + self.by_network(self.means)[network]
        return found

    def encode(self, network: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The code of normalised activations [position, channel] of a network: values, 0 or larger,
        and atoms, both [position, active]."""
        weight = self.by_network(self.encoder)[network]
        x = x - self.by_network(self.origin)[network]
        found = torch.topk(torch.relu(F.linear(x, weight, self.bias[network])), self.active, dim=1)
        return found.values, found.indices

    def decode(self, values: Tensor, atoms: Tensor) -> tuple[Tensor, ...]:
        """Normalised activations [position, channel] of every network from a code."""
        found = F.embedding_bag(atoms, self.decoder, per_sample_weights=values, mode="sum")
        return self.by_network(found + self.origin)

    def code(self, network: int, x: Tensor) -> Tensor:
        """`encode` with a column for every atom: [position, atom]."""
        values, atoms = self.encode(network, x)
        return x.new_zeros(len(x), self.atoms).scatter_(1, atoms, values)

    @property
    def decoders(self) -> tuple[Tensor, ...]:
        """The decoder [atom, channel] of every network."""
        return self.by_network(self.decoder.detach())


@checked(MeasureError)
def fit_dictionary(
    parts: Sequence[GridActivations],
    recipe: DictionaryRecipe | None = None,
    *,
    shuffled: bool = False,
    state: Path | None = None,
    device: str = "cpu",
) -> Dictionary:
    """The dictionary of the activations of one or several networks on the same images.

    With `shuffled` each network after the first gets the images in an order of its own: the null
    hypothesis that networks share nothing but what is the same in every image. `state` is a file
    that is written after every epoch, so that the same call goes on from there, to the same
    numbers.

    Raises MeasureError for different images or grids, a constant layer, values that are not finite,
    more atoms than positions, and a training that diverges; StoreError for a `state` of another
    training, or that cannot be read."""
    recipe = recipe or DictionaryRecipe()
    check_parts(parts)
    positions = len(parts[0].values) * parts[0].values.shape[1]
    if recipe.atoms > positions:
        raise MeasureError(
            f"{recipe.atoms} atoms are more than the {positions} positions they are learned from: "
            "take fewer atoms or more images"
        )
    fit = _Fit(parts, recipe, orders(parts, recipe.seed, shuffled), resolve_device(device))
    settings = digest(
        repr((asdict(recipe), shuffled, parts[0].grid, parts[0].images.fingerprint)),
        *(part.model.fingerprint + part.layer.name for part in parts),
    )
    names = ", ".join(part.model.name for part in parts)
    with task(f"dictionary of {names}", recipe.epochs) as advance:
        done = fit.load(state, settings)
        advance(done)
        for epoch in range(done, recipe.epochs):
            fit.epoch(epoch)
            fit.save(state, settings, epoch + 1)
            advance(1)
    return fit.dictionary.eval().requires_grad_(False)


def check_parts(parts: Sequence[GridActivations]) -> None:
    """Raise MeasureError unless all are of the same images on the same grid, finite, and not
    constant."""
    for part in parts:
        name = f"layer '{part.layer.name}' of {part.model.name}"
        check_same_images(parts[0], part)
        if part.grid != parts[0].grid:
            sizes = " and ".join(f"{a}×{b}" for a, b in (part.grid, parts[0].grid))
            raise MeasureError(f"{name} has another grid than the first ({sizes} cells)")
        if not np.isfinite(part.values).all():
            raise MeasureError(f"{name} has values that are NaN or infinite")
        if (part.values == part.values[:1, :1]).all():
            raise MeasureError(f"{name} is constant: it has no features to learn")


def orders(parts: Sequence[GridActivations], seed: int, shuffled: bool) -> list[np.ndarray]:
    """The images of each network: the same ones, or with `shuffled` an order of its own for each
    after the first, in which no image is at its own place."""
    n = len(parts[0].values)
    same = np.arange(n)
    if not shuffled:
        return [same for _ in parts]
    mixed = np.random.default_rng(seed).permutation(n)
    # Rotations of one random cycle: also no two networks have the same image.
    places = np.argsort(mixed)
    return [mixed[(places + i * max(1, n // (len(parts) + 1))) % n] for i in range(len(parts))]


def positions_of(
    dictionary: Dictionary, parts: Sequence[GridActivations], images: Sequence[np.ndarray]
) -> list[Tensor]:
    """Normalised activations [position, channel] of every network at its own `images`."""
    return [
        dictionary.normalised(i, part.rows(rows).to(dictionary.means.device))
        for i, (part, rows) in enumerate(zip(parts, images, strict=True))
    ]


class _Fit:
    """A dictionary in training."""

    def __init__(
        self,
        parts: Sequence[GridActivations],
        recipe: DictionaryRecipe,
        order: Sequence[np.ndarray],
        device: torch.device,
    ) -> None:
        self.parts, self.recipe, self.order = parts, recipe, order
        n, cells = parts[0].values.shape[:2]
        self.buffer = max(1, BUFFER // cells)
        starts = range(0, n, self.buffer)
        steps = [math.ceil(min(self.buffer, n - at) * cells / recipe.batch_size) for at in starts]
        self.steps, self.step = sum(steps) * recipe.epochs, 0
        self.dictionary = Dictionary(
            [part.layer.channels for part in parts], recipe.atoms, recipe.active
        )
        self._scale()
        self.dictionary.to(device)
        generator = torch.Generator().manual_seed(recipe.seed)
        chosen = np.sort(torch.randperm(n, generator=generator)[: self.buffer].numpy())
        first = self._read(chosen)
        self._start(
            torch.arange(recipe.atoms),
            first[torch.randint(len(first), (recipe.atoms,), generator=generator)],
        )
        self.optimizer = torch.optim.Adam(
            self.dictionary.parameters(), recipe.learning_rate, betas=(0.9, 0.99)
        )

    @torch.no_grad()
    def _scale(self) -> None:
        """Means and total variances over all positions, in float64."""
        means, scales = [], []
        for part in self.parts:
            flat = part.values.reshape(-1, part.values.shape[-1])
            mean = flat.mean(0, dtype=np.float64)
            square = sum(
                float(np.square(flat[rows] - mean).sum()) for rows in slices(len(flat), BUFFER)
            )
            means.append(torch.from_numpy(mean))
            scales.append(math.sqrt(square / len(flat)))
        self.dictionary.means.copy_(torch.cat(means))
        self.dictionary.scales.copy_(torch.tensor(scales))

    def _read(self, images: np.ndarray) -> Tensor:
        """Normalised activations of all networks side by side, [position, sum of widths]."""
        return torch.cat(
            positions_of(self.dictionary, self.parts, [order[images] for order in self.order]), 1
        )

    @torch.no_grad()
    def _start(self, atoms: Tensor, positions: Tensor) -> None:
        """Let atoms be the directions of `positions` [atom, sum of widths]."""
        d = self.dictionary
        directions = F.normalize(positions - d.origin, dim=1)
        d.decoder[atoms] = directions
        # So that each network that has an atom gives the same code for it.
        for encoder, own in zip(d.by_network(d.encoder), d.by_network(directions)):
            encoder[atoms] = own / own.square().sum(1, keepdim=True).clamp_min(FAINT)
        d.bias[:, atoms] = 0

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """All positions in a random order, `BUFFER` of them shuffled at a time."""
        generator = torch.Generator().manual_seed(_SEEDS * (self.recipe.seed + 1) + epoch)
        order = torch.randperm(len(self.parts[0].values), generator=generator).numpy()
        for rows in slices(len(order), self.buffer):
            x = self._read(order[rows])
            self.last = x
            mixed = x[torch.randperm(len(x), generator=generator)]
            yield from torch.split(mixed, self.recipe.batch_size)

    def epoch(self, epoch: int) -> None:
        """One epoch. Raises MeasureError where the loss is not finite."""
        d, networks = self.dictionary, range(len(self.parts))
        used = torch.zeros_like(d.bias)
        self.step = epoch * self.steps // self.recipe.epochs
        for x in self.batches(epoch):
            rising = (self.step + 1) / max(1, WARMUP * self.steps)
            falling = (self.steps - self.step) / max(1, DECAY * self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * min(1.0, rising, falling)
            errors = []
            for i, own in enumerate(d.by_network(x)):
                values, atoms = d.encode(i, own)
                errors.append((torch.cat(d.decode(values, atoms), 1) - x).square().sum(1).mean())
                used[i].index_add_(0, atoms.flatten(), (values.detach() > 0).float().flatten())
            loss = torch.stack(errors).mean() / len(networks)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            self.step += 1
            with torch.no_grad():
                d.decoder.copy_(F.normalize(d.decoder, dim=1))
        if not math.isfinite(float(loss.detach())):
            raise MeasureError(
                f"the training of the dictionary diverged (loss {float(loss.detach())} after epoch "
                f"{epoch + 1}): take a lower learning rate than {self.recipe.learning_rate:g}"
            )
        if epoch + 1 < RENEWAL * self.recipe.epochs:
            self._renew(used, epoch)

    @torch.no_grad()
    def _renew(self, used: Tensor, epoch: int) -> None:
        """Merge copies, and let atoms that were not used start anew. `used` [network, atom] counts
        the positions where they were active."""
        d = self.dictionary
        alive = used.sum(0) > 0
        cosines = torch.triu(d.decoder @ d.decoder.T, 1)
        for first, second in (cosines > COPY).nonzero().tolist():
            if not (alive[first] and alive[second]):
                continue
            for i, encoder in enumerate(d.by_network(d.encoder)):
                if used[i, second] > used[i, first]:
                    encoder[first], d.bias[i, first] = encoder[second], d.bias[i, second]
            alive[second] = False
        unused = (~alive).nonzero().flatten()
        generator = torch.Generator().manual_seed(_SEEDS * (self.recipe.seed + 1) - 1 - epoch)
        some = self.last[:SAMPLE]
        errors = torch.cat(
            [own - d.decode(*d.encode(i, own))[i] for i, own in enumerate(d.by_network(some))],
            1,
        )
        weights = errors.square().sum(1).cpu()
        unused = unused[: int((weights > 0).sum())]
        if not len(unused):
            return
        chosen = torch.multinomial(weights, len(unused), generator=generator)
        self._start(unused, errors[chosen.to(errors.device)] + d.origin)
        for name in ("exp_avg", "exp_avg_sq"):
            for parameter in (d.encoder, d.decoder):
                self.optimizer.state[parameter][name][unused] = 0
            self.optimizer.state[d.bias][name][:, unused] = 0

    # -- states ------------------------------------------------------------------------------------

    def save(self, file: Path | None, settings: str, epochs: int) -> None:
        """Write the state after so many epochs."""
        if file is None:
            return
        content = io.BytesIO()
        held: dict[str, Any] = {"settings": settings, "epochs": epochs}
        held |= {key: part.state_dict() for key, part in self._held().items()}
        torch.save(held, content)
        write_bytes(file, content.getvalue())

    def load(self, file: Path | None, settings: str) -> int:
        """The epochs that are done. Raises StoreError for a state of another training."""
        if file is None or not file.exists():
            return 0
        try:
            held = torch.load(file, weights_only=True, map_location=self.dictionary.means.device)
            same = held["settings"] == settings
            if same:
                for key, part in self._held().items():
                    part.load_state_dict(held[key])
        except Exception as error:
            raise StoreError(
                f"the state {file} cannot be read ({error}); remove it to start again"
            ) from error
        if not same:
            raise StoreError(
                f"the state {file} is of another dictionary (networks, layers, images or settings "
                "differ); use another file, or remove this one"
            )
        return int(held["epochs"])

    def _held(self) -> dict[str, Any]:
        return {"dictionary": self.dictionary, "optimizer": self.optimizer}

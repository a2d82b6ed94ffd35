"""What probes cost and how accurate they are: ridge and logistic regression, one penalty and paths,
against two peers.

Contenders take turns within a round, so that whatever else the machine does hits all of them; what
counts is the median over rounds of the ratio to scikit-learn's logistic regression with one C in
the same round. CPU seconds, summed over cores, are given beside it: they depend less on what else
runs. Everything is timed from float32 features to the predicted classes of the test images, scaling
and the choice of a penalty included.

    python tests/benchmarks/bench_probes.py [--sizes 5000x768x50 50000x768x100] [--rounds 5] \\
        [--json FILE]

The features are synthetic: Gaussian classes whose means differ in the 128 directions of most
variance of a covariance with the spectrum j^-1.2, in a random basis, which is as steep as the
spectra of pooled features of trained networks. The penalty of a single fit is that which the
left-out images of our path choose, the same for both sides; scikit-learn's tol is its default. The
path of scikit-learn's logistic regression and visbench are run in `--slow-rounds` rounds alone.

visbench is optional (pip install visbench); its probe is a linear layer trained by AdamW for 200
epochs, its default.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier, RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from mixer_probe.probing import LogisticProbe, RidgeProbe, logistic_path, ridge_path

SIZES = ("5000x768x50", "50000x768x100")
REFERENCE = "scikit-learn logistic, one C"
NINE = "scikit-learn logistic, nine C"
# (ours, theirs, times as fast at an accuracy that is at most half a point lower): one fit against
# one, a path against a path, and a ridge path with the choice of a penalty against one logistic fit
# with a given one.
TARGETS = (
    ("ridge, one l2", REFERENCE, 10.0),
    ("ridge, nine l2", NINE, 10.0),
    ("ridge, nine l2", REFERENCE, 10.0),
    ("logistic, one l2", REFERENCE, 2.0),
    ("logistic, nine l2", NINE, 2.0),
)
SAME = 0.005


@dataclass(frozen=True)
class Work:
    """Features and classes of n training images and of 5,000 test images."""

    n: int
    p: int
    classes: int
    seed: int = 0
    spread: float = 0.3

    @classmethod
    def of(cls, size: str, seed: int) -> Work:
        """From "n x p x classes"."""
        return cls(*map(int, size.split("x")), seed=seed)

    @cached_property
    def sides(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """(X, y) for training and for testing."""
        random = np.random.default_rng(self.seed)
        basis = np.linalg.qr(random.normal(size=(self.p, self.p)))[0]
        scale = np.arange(1, self.p + 1) ** -0.6
        means = np.zeros((self.classes, self.p))
        means[:, :128] = self.spread * random.normal(size=(self.classes, 128))[:, : self.p]

        def side(n: int) -> tuple[np.ndarray, np.ndarray]:
            y = random.permutation(np.arange(n) % self.classes)
            X = ((random.normal(size=(n, self.p)) + means[y]) * scale) @ basis.T
            return X.astype(np.float32), y

        return side(self.n), side(5000)

    @cached_property
    def ridge_l2(self) -> np.ndarray:
        """Nine penalties, one a decade and more."""
        return np.asarray(self.n * np.logspace(-4, 2, 9))

    @cached_property
    def logistic_l2(self) -> float:
        """The one that accuracy on left-out training images chooses."""
        (X, y), _ = self.sides
        return logistic_path(X, y, self.logistic_nine).best_l2()

    @cached_property
    def best_ridge_l2(self) -> float:
        """The one that leave-one-out chooses."""
        (X, y), _ = self.sides
        return ridge_path(X, y, self.ridge_l2).best_l2()

    @property
    def logistic_nine(self) -> np.ndarray:
        """Two penalties a decade."""
        return np.asarray(self.n * np.logspace(-4, 0, 9))


# -- contenders: work -> predicted classes of the test images --------------------------------------

Contender = Callable[[Work], np.ndarray]


def ridge_nine(work: Work) -> np.ndarray:
    """Ours, nine penalties, of which leave-one-out chooses."""
    (X, y), (new, _) = work.sides
    path = ridge_path(X, y, work.ridge_l2)
    return RidgeProbe.of(path, path.best_l2()).predict(new)


def ridge_one(work: Work) -> np.ndarray:
    """Ours, one penalty."""
    (X, y), (new, _) = work.sides
    return RidgeProbe(work.best_ridge_l2).fit(X, y).predict(new)


def logistic_one(work: Work) -> np.ndarray:
    """Ours, one penalty."""
    (X, y), (new, _) = work.sides
    return logistic_path(X, y, [work.logistic_l2]).predict(new)[0]


def logistic_nine(work: Work) -> np.ndarray:
    """Ours, nine penalties; the prediction is that of the chosen one."""
    (X, y), (new, _) = work.sides
    path = logistic_path(X, y, work.logistic_nine)
    return LogisticProbe.of(
        path, float(path.l2[np.argmin(np.abs(path.l2 - work.logistic_l2))])
    ).predict(new)


def scaled(work: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised training features, their classes, and standardised test features, in float32."""
    (X, y), (new, _) = work.sides
    scaler = StandardScaler().fit(X)
    return scaler.transform(X), y, scaler.transform(new)


def sklearn_logistic_one(work: Work) -> np.ndarray:
    """scikit-learn's L-BFGS, one penalty, in the float32 of the features: its quickest."""
    Z, y, new = scaled(work)
    return LogisticRegression(C=1 / work.logistic_l2, max_iter=1000).fit(Z, y).predict(new)


def sklearn_logistic_nine(work: Work) -> np.ndarray:
    """The same for nine penalties, each from the solution before."""
    Z, y, new = scaled(work)
    model, answers = LogisticRegression(max_iter=1000, warm_start=True), {}
    for l2 in work.logistic_nine[::-1]:
        answers[l2] = model.set_params(C=1 / l2).fit(Z, y).predict(new)
    return answers[min(answers, key=lambda l2: abs(l2 - work.logistic_l2))]


def sklearn_ridge_one(work: Work) -> np.ndarray:
    """scikit-learn's ridge classifier with one penalty."""
    Z, y, new = scaled(work)
    return RidgeClassifier(alpha=work.best_ridge_l2).fit(Z, y).predict(new)


def sklearn_ridge_nine(work: Work) -> np.ndarray:
    """scikit-learn's ridge classifier with nine penalties, of which leave-one-out (of squared
    errors) chooses."""
    Z, y, new = scaled(work)
    return RidgeClassifierCV(alphas=work.ridge_l2).fit(Z, y).predict(new)


def visbench_probe(work: Work) -> np.ndarray:
    """visbench's linear probe of pooled features, with its defaults but for standardised features,
    as all others have."""
    from visbench.tasks.high_level.classification import ClassificationTask

    (X, y), (new, _) = work.sides
    torch.manual_seed(0)
    task = ClassificationTask(num_classes=work.classes, standardize=True, device="cpu")
    return task.fit(torch.from_numpy(X), torch.from_numpy(y)).predict(torch.from_numpy(new)).numpy()


FAST: dict[str, Contender] = {
    "ridge, one l2": ridge_one,
    "ridge, nine l2": ridge_nine,
    "logistic, one l2": logistic_one,
    "logistic, nine l2": logistic_nine,
    REFERENCE: sklearn_logistic_one,
    "scikit-learn ridge, one alpha": sklearn_ridge_one,
}
SLOW: dict[str, Contender] = {
    NINE: sklearn_logistic_nine,
    "scikit-learn ridge, nine alphas": sklearn_ridge_nine,
    "visbench": visbench_probe,
}


# -- measuring -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run of a contender."""

    seconds: float
    cpu_seconds: float
    accuracy: float


def run(label: str, contender: Contender, work: Work) -> Run:
    """Time a contender and test its answers; a line on stderr says so, since some take minutes.

    All but the slow ones run once before, so that none pays for memory that the one before gave
    back to the system."""
    if label in FAST:
        contender(work)
    began, cpu = time.perf_counter(), time.process_time()
    predicted = contender(work)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    found = Run(seconds, cpu, float((predicted == work.sides[1][1]).mean()))
    print(f"  {label}: {found}", file=sys.stderr, flush=True)
    return found


def missing() -> dict[str, str]:
    """Contenders that cannot run here, and why."""
    found = importlib.util.find_spec("visbench") is not None
    return (
        {} if found else {"visbench": "skipped: visbench is not installed (pip install visbench)"}
    )


def measure(size: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Per contender the medians over rounds."""
    work = Work.of(size, arguments.seed)
    # Made and chosen outside what is timed, and the libraries warmed up.
    print(
        f"{size}: l2 of ridge {work.best_ridge_l2:.4g}, of the logistic regression "
        f"{work.logistic_l2:.4g}",
        flush=True,
    )
    small = Work(500, work.p, 10)
    slow = {
        label: c
        for label, c in SLOW.items()
        if label not in missing() and label not in arguments.skip
    }
    for contender in FAST.values():
        contender(small)
    rounds: list[dict[str, Run]] = []
    for i in range(arguments.rounds):
        chosen = FAST | (slow if i < arguments.slow_rounds else {})
        labels = [*chosen][i % len(chosen) :] + [*chosen][: i % len(chosen)]
        rounds.append({label: run(label, chosen[label], work) for label in labels})
    return {label: summary(label, rounds) for label in [*FAST, *slow]} | missing()


def summary(label: str, rounds: list[dict[str, Run]]) -> dict[str, Any]:
    """Medians of one contender; `speedup` is how many times faster than the reference of the same
    round it was."""
    pairs = [(r[label], r[REFERENCE]) for r in rounds if label in r]
    return {
        "seconds": statistics.median(mine.seconds for mine, _ in pairs),
        "cpu_seconds": statistics.median(mine.cpu_seconds for mine, _ in pairs),
        "speedup": statistics.median(other.seconds / mine.seconds for mine, other in pairs),
        "cpu_speedup": statistics.median(
            other.cpu_seconds / mine.cpu_seconds for mine, other in pairs
        ),
        "speedups": [round(other.seconds / mine.seconds, 4) for mine, other in pairs],
        "accuracy": statistics.median(mine.accuracy for mine, _ in pairs),
        "rounds": len(pairs),
    }


def table(size: str, found: dict[str, Any]) -> str:
    """The figures of one size as text."""
    lines = [f"{size:<34} {'seconds':>8} {'cpu s':>8} {'faster':>7} {'by cpu':>7} {'accuracy':>9}"]
    for label, values in found.items():
        if isinstance(values, str):
            lines.append(f"  {label:<32} {values}")
            continue
        numbers = (
            values["seconds"],
            values["cpu_seconds"],
            values["speedup"],
            values["cpu_speedup"],
            values["accuracy"],
        )
        lines.append(
            "  {:<32} {:>8.2f} {:>8.2f} {:>7.2f} {:>7.2f} {:>9.4f}".format(label, *numbers)
        )
    return "\n".join(lines)


def verdict(sizes: dict[str, Any]) -> str:
    """Whether the targets were met."""
    return "\n".join(
        _verdict(size, found, *target) for size, found in sizes.items() for target in TARGETS
    )


def _verdict(size: str, found: dict[str, Any], ours: str, theirs: str, target: float) -> str:
    if theirs not in found:
        return f"{size}: {ours} against {theirs}: not measured"
    # Of the same rounds, by their ratios to the reference.
    rounds = zip(found[ours]["speedups"], found[theirs]["speedups"], strict=False)
    faster = statistics.median(mine / other for mine, other in rounds)
    apart = found[ours]["accuracy"] - found[theirs]["accuracy"]
    met = "met" if faster >= target and apart >= -SAME else "NOT met"
    return (
        f"{size}: {ours} {faster:.1f} times as fast as {theirs} (target {target:g}), accuracy "
        f"{apart:+.4f}: {met}"
    )


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that belongs to the figures."""
    return {
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "python": platform.python_version(),
        "rounds": f"{arguments.rounds} ({arguments.slow_rounds} of slow contenders)",
        "reference": REFERENCE,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="images x features x classes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=1)
    parser.add_argument(
        "--skip", nargs="*", default=[], choices=[*SLOW], help="slow contenders to leave out"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    content: dict[str, Any] = {**report(arguments), "sizes": {}}
    print(", ".join(f"{k} {v}" for k, v in content.items() if k != "sizes"), flush=True)
    for size in arguments.sizes:
        content["sizes"][size] = measure(size, arguments)
        print(table(size, content["sizes"][size]), flush=True)
    print(verdict(content["sizes"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()

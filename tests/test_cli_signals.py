"""Signals: what an interrupt keeps, the others keep too, and each says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mixer_probe.capture import extract
from mixer_probe.cli.signals import Ended, ended_by_signals
from tests.capture.test_integrity import numbers
from tests.capture.test_store import Source
from tests.networks import CASES

SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"]


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Tests that run in the background, or under `nohup`, ignore some signals, which processes and
    contexts inherit."""
    before = {
        name: signal.signal(getattr(signal, name), signal.SIG_DFL) for name in ("SIGTERM", "SIGHUP")
    }
    before["SIGINT"] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


# The command line with a command that waits; twice, as those who stop services do.
SCRIPT = """
import os, signal, sys, time
from mixer_probe import cli
def work():
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        print("kept", flush=True)
cli.app = work
cli.main()
"""


@pytest.mark.parametrize("name", SIGNALS)
def test_the_command_line_ends_with_a_sentence_and_the_code_of_the_signal(name: str) -> None:
    number = getattr(signal, name)
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == "kept\n"
    assert (
        err
        == f"mixer-probe: ended by {name}; extract, demo and report resume from what is finished\n"
    )


class Told(Source):
    """Images whose reader is told to end before the third batch."""

    signal: int | None = None

    def batches(self, *arguments: object, **options: object) -> Iterator[torch.Tensor]:
        for i, batch in enumerate(super().batches(*arguments, **options)):  # type: ignore[arg-type]
            if i == 2 and self.signal is not None:
                os.kill(os.getpid(), self.signal)
            yield batch


@pytest.mark.parametrize("name", SIGNALS)
def test_a_run_keeps_what_is_there_and_goes_on(tmp_path: Path, name: str) -> None:
    model, source = CASES["mixer"].model(), Told(9)
    source.signal = getattr(signal, name)
    before = signal.getsignal(source.signal)
    with pytest.raises(Ended) as caught, ended_by_signals():
        extract(model, source, batch_size=2, out=tmp_path / "run")
    assert caught.value.code == 128 + source.signal
    assert signal.getsignal(source.signal) is before
    source.signal = None
    found = extract(model, source, batch_size=2, out=tmp_path / "run")
    assert source.starts == [0, 4]
    assert numbers(found) == numbers(extract(model, Source(9), batch_size=2))


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As `nohup` starts a command."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)

"""The command line `mixer-probe`: demo, models, analyses, inspect, extract, compare, probe,
weights, mixing, concepts, channels, attribute, report, render, diff and app."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from typing import NoReturn

# The order in which `mixer-probe --help` lists them.
# isort: off
from mixer_probe.cli import listing, similarity, probes, weights  # noqa: F401
from mixer_probe.cli import mixing, concepts, channels  # noqa: F401
from mixer_probe.cli import attribute, reports, diff  # noqa: F401

# isort: on
from mixer_probe.cli.options import app, console, errors
from mixer_probe.cli.signals import Ended, ended_by_signals
from mixer_probe.core.errors import MixerProbeError
from mixer_probe.core.threads import use_part
from mixer_probe.parallel import ranks

__all__ = ["DEBUG", "app", "console", "errors", "main"]

# Set in the environment, an error that nobody foresaw is shown with its traceback.
DEBUG = "MIXER_PROBE_DEBUG"
_BUG = 70  # EX_SOFTWARE of sysexits.h


@ended_by_signals()
def main() -> None:
    """Run the command line. An error is one line, with exit code 2 if it was made on purpose or by
    the system, else 70."""
    warnings.showwarning = errors.warn
    # Figures go to files, whatever draws on this machine's screen.
    os.environ["MPLBACKEND"] = "agg"
    for stream in (sys.stdout, sys.stderr):
        # What an ASCII terminal cannot show is escaped.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    here = ranks()
    if here.world > 1:
        use_part(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        # The first one speaks for all; errors are those of whoever meets them.
        console.quiet = not here.first
    try:
        app()
        # What is left to be written may meet a full disk too.
        if sys.stdout is not None:
            sys.stdout.flush()
    except MixerProbeError as error:
        _end(str(error), 2)
    except (Ended, KeyboardInterrupt) as error:
        name, code = (error.name, error.code) if isinstance(error, Ended) else ("SIGINT", 130)
        _end(f"ended by {name}; extract, demo and report resume from what is finished", code)
    except BrokenPipeError:
        # Who read this has gone, and Python would say so once more at its end.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        text = " ".join(str(error).split()) or "without a message"
        if isinstance(error, MemoryError):
            _end(f"out of memory ({text}); use fewer images or a smaller batch", 2)
        if isinstance(error, OSError):
            where = "" if error.filename is None else f" for {error.filename!s}"
            _end(f"the system refused{where}: {error.strerror or text}", 2)
        kind = type(error).__name__
        _end(
            f"this is a bug in mixer_probe, please report it: {kind}: {text} ({DEBUG}=1 shows "
            "where it comes from)",
            _BUG,
        )


def _end(sentence: str, code: int) -> NoReturn:
    colour = {"style": "red"} if code <= 128 else {}
    with suppress(OSError):
        errors.line_of(f"mixer-probe: {sentence}", **colour)
    sys.exit(code)

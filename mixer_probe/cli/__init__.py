"""The command line: `mixer-probe demo | models | inspect | extract | compare | probe | weights | channels | attribute | report |
render | diff | app`."""

from __future__ import annotations

import sys
import warnings
from typing import Any

# The order in which `mixer-probe --help` lists them.
from mixer_probe.cli import looking, similarity, probes, weights, channels, attribute, reports, diff  # isort: skip  # noqa: F401
from mixer_probe.cli.options import app, console, errors
from mixer_probe.errors import MixerProbeError

__all__ = ["app", "console", "errors", "main"]


def main() -> None:
    """Run the command line; errors made on purpose are one line and exit code 2."""
    warnings.showwarning = _show_warning
    try:
        app()
    except MixerProbeError as error:
        errors.print(f"mixer-probe: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("mixer-probe: interrupted; the same command goes on where it stopped", markup=False)
        sys.exit(130)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    from mixer_probe.errors import MixerProbeWarning

    if issubclass(category, MixerProbeWarning):
        errors.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)

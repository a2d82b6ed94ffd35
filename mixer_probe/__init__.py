"""mixer_probe: what did an MLP-Mixer learn, and how does that differ from a ViT and a CNN?

The public names, nothing else. They are imported on first use, so that `import mixer_probe` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "zoo": "mixer_probe.zoo",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mixer_probe' has no attribute '{name}'")
    home = importlib.import_module(_HOME[name])
    value = home if _HOME[name].endswith("." + name) else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Results files as somebody could write them who knows the format."""

from __future__ import annotations

import json
from typing import Any

from mixer_probe.core.files import checksum
from mixer_probe.core.result import FORMAT


def sealed(found: Any, **others: Any) -> str:
    """A results file with this content and the checksum that belongs to it."""
    content = {"format": FORMAT, "title": "", "settings": {}, "results": found} | others
    return json.dumps({**content, "checksum": checksum(content)})

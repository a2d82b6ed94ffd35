"""Text for display: names without terminal control characters, marks of writing direction or
spreadsheet formulas."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# Categories of control characters, lone surrogates, and line and paragraph separators.
_CONTROL = ("Cc", "Cs", "Zl", "Zp")
# These change the writing direction of the text around them.
_DIRECTION = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# A spreadsheet evaluates cells that begin with one of these as formulas (OWASP, CSV Injection).
_FORMULA = re.compile(r"[=+\-@\t\r]")
# A sign alone is no formula; tables use it for "none".
_SIGNS = ("-", "+")
_NUMBER = re.compile(
    r"[+-]?(\d[\d,]*\.?\d*|\.\d+)([eE][+-]?\d+)?( ?%)?|[+-]?(inf|nan)", re.IGNORECASE
)


def visible(text: str) -> str:
    r"""The text with control characters, marks of direction and lone surrogates escaped, except
    line breaks and tabs."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        escape(c)
        if c not in "\n\t" and (c in _DIRECTION or unicodedata.category(c) in _CONTROL)
        else c
        for c in text
    )


def escape(character: str) -> str:
    r"""The character as the escape of its code point ("\u202e"), or of its byte ("\xe9") in a file
    name that is not UTF-8."""
    code = ord(character)
    # Python decodes such bytes to U+DC80 to U+DCFF.
    code = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def quoted(text: str, longest: int = 80) -> str:
    """A name of a file's as people read it: in quotes, on one line, and not endless."""
    return repr(text if len(text) <= longest else f"{text[: longest - 3]}...")


def slug(text: str) -> str:
    """The text as part of the name of a file: letters, digits, and - _ . alone."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV without its index. Text that a spreadsheet would run as a formula is prefixed
    with an apostrophe, numbers are unchanged, and control characters are escaped."""
    plain = frame.rename(columns=_cell).copy()
    for i, dtype in enumerate(plain.dtypes):
        if getattr(dtype, "kind", "O") not in "biufc":
            plain.isetitem(i, [_cell(value) for value in plain.iloc[:, i]])
    return str(plain.to_csv(index=False))


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = visible(value)
    return (
        f"'{text}"
        if _FORMULA.match(text) and not _NUMBER.fullmatch(text) and text not in _SIGNS
        else text
    )

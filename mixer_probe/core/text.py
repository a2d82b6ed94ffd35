"""Names as people read them: nothing in a name steers a terminal, turns the direction of writing, or is a formula of a table."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# Cc steers terminals, Cs is no character, and these change the direction of what stands around them.
_TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_KEPT = "\n\t"
# A spreadsheet takes a cell that begins so for a formula (OWASP, CSV Injection).
_FORMULA = re.compile(r"[=+\-@\t\r]")
# A sign with nothing after it is no formula; tables have it for "none".
_SIGNS = ("-", "+")
_NUMBER = re.compile(r"[+-]?(\d[\d,]*\.?\d*|\.\d+)([eE][+-]?\d+)?( ?%)?|[+-]?(inf|nan)", re.IGNORECASE)


def visible(text: str) -> str:
    r"""The text with control characters, marks of direction and lone surrogates as their escapes; lines and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if _steers(c) else c for c in text)


def _steers(character: str) -> bool:
    return character not in _KEPT and (character in _TURNING or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"))


def _escape(character: str) -> str:
    code = ord(character)
    # The bytes of a file name that is not UTF-8 are U+DC80 to U+DCFF.
    code = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def slug(text: str) -> str:
    """The text as part of the name of a file: letters, digits, and - _ . alone."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV without its index. Text that a spreadsheet would run as a formula gets an apostrophe before it, numbers are
    as they are, and what steers a terminal is escaped."""
    plain = frame.rename(columns=_cell).copy()
    for i, dtype in enumerate(plain.dtypes):
        if not _is_number(dtype):
            plain.isetitem(i, [_cell(value) for value in plain.iloc[:, i]])
    return str(plain.to_csv(index=False))


def _is_number(dtype: Any) -> bool:
    return getattr(dtype, "kind", "O") in "biufc"


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) and text not in _SIGNS else text

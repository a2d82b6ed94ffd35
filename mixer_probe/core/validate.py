"""One validator of arguments: whole numbers, numbers, choices and names, refused in one sentence of
the caller's error class.

`checked` reads what a function's annotations say. A parameter annotated `int`, `float` or with a
Literal gets nothing else, and the names of `_LEAST` mean the same in every function, so that they
have one range each."""

from __future__ import annotations

import ast
import functools
import inspect
import math
import numbers
import unicodedata
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from mixer_probe.core.errors import MixerProbeError, closest
from mixer_probe.core.text import visible

T = TypeVar("T", bound=Callable[..., Any])
Error = type[MixerProbeError]

# numpy's legacy generators and scikit-learn take no larger seed; torch and numpy's new ones do.
LARGEST_SEED = 2**32 - 1
# A file name on common file systems; longer names of networks, data sets, layers and measures do
# not exist.
LONGEST_NAME = 255
# So many choices are all named, of more the closest ones.
_FEW = 6

_LEAST = {
    **dict.fromkeys(
        [
            "permutations",
            "resamples",
            "left_out",
            "without_top_pc",
            "start",
            "statistics_images",
            "causal_images",
            "runs",
            "keep",
        ],
        0,
    ),
    **dict.fromkeys(
        ["batch_size", "limit", "k", "steps", "n_steps", "draws", "controls", "orders", "bins"], 1
    ),
    **dict.fromkeys(
        ["surrogates", "shuffles", "null_size", "largest_grid", "epochs", "max_iter", "components"],
        1,
    ),
    **dict.fromkeys(
        ["seeds", "samples", "sensitivity_samples", "random_orders", "minimum_images", "most"], 1
    ),
    "folds": 2,
}


def check_seed(value: Any, error: Error, name: str = "seed") -> int:
    """A seed that numpy, torch and scikit-learn all take, 0 to 2**32 - 1; raises `error` for
    anything else."""
    return check_count(name, value, error, least=0, most=LARGEST_SEED)


def check_count(
    name: str, value: Any, error: Error, *, least: int | None = 1, most: int | None = None
) -> int:
    """A whole number from `least` to `most` (None: without that end); raises `error` for anything
    else, bools too."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
        if (least is None or number >= least) and (most is None or number <= most):
            return number
    wanted = "a whole number"
    if least is not None:
        wanted += f" from {least} to {most}" if most is not None else f", {least} or more"
    raise error(f"{name} is {wanted}, not {shown(value)}")


def whole_number(text: str) -> int | None:
    """The whole number that a person wrote in the digits 0 to 9, at most 18 of them; None for any
    other text."""
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 18 else None


def check_number(name: str, value: Any, error: Error) -> float:
    """A finite number; raises `error` for anything else, bools too."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        return value if isinstance(value, int | float) else float(value)
    raise error(f"{name} is a finite number, not {shown(value)}")


def check_fraction(
    name: str, value: Any, error: Error, *, zero: bool = False, one: bool = False
) -> float:
    """A number between 0 and 1, which `zero` and `one` let be an end; raises `error` for anything
    else."""
    number = check_number(name, value, error)
    if 0 < number < 1 or (zero and number == 0) or (one and number == 1):
        return number
    low, high = "from 0" if zero else "above 0", "at most 1" if one else "below 1"
    raise error(f"{name} is a number {low} and {high}, not {shown(value)}")


def check_grid(value: Any, error: Error) -> tuple[int, int]:
    """A grid as (rows, columns), from both or from one number for a square one; raises `error` for
    anything else."""
    sides = (
        tuple(value)
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
        else (value, value)
    )
    try:
        return check_count("rows", sides[0], error), check_count("columns", sides[1], error)
    except error:
        raise error(
            f"grid is a whole number or (rows, columns), each 1 or more, not {shown(value)}"
        ) from None


def check_choice(name: str, value: Any, known: Collection[str], error: Error) -> str:
    """One of the names `known`; raises `error` with the closest ones for anything else."""
    if isinstance(value, str) and value in known:
        return value
    near = (
        f"known: {', '.join(known)}"
        if len(known) <= _FEW
        else closest(str(value)[:LONGEST_NAME], known)
    )
    raise error(f"unknown {name} {shown(value)}; {near}")


def check_text(name: str, value: Any, error: Error) -> str:
    """A name: text that is not empty, of at most 255 characters, without control characters; raises
    `error` otherwise."""
    if not isinstance(value, str):
        raise error(f"{name} is text, not {shown(value)}")
    if not value.strip():
        raise error(f"{name} is empty; give a name")
    if len(value) > LONGEST_NAME:
        raise error(
            f"{name} is a name of at most {LONGEST_NAME} characters, not {len(value)}: "
            f"{shown(value)}"
        )
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise error(f"{name} is a name without control characters, not {shown(value)}")
    return value


def shown(value: Any, most: int = 60) -> str:
    """`value` for an error sentence: its repr on one line, shortened."""
    text = visible(repr(value) if isinstance(value, str) else " ".join(repr(value).split()))
    return text if len(text) <= most else f"{text[: most - 4]}...{text[-1]}"


def checked(error: Error, **others: Error) -> Callable[[T], T]:
    """Decorator of a function or class: its arguments are checked before it runs, `error` is raised
    for the first wrong one, or the error that `others` gives under its name.

    An argument of a parameter annotated `int`, `float` or with a Literal (or with None besides) has
    to be that; `seed` and the names of `_LEAST` have their ranges. Whole numbers of numpy are
    handed over as int. Other arguments are not looked at."""

    def decorate(target: T) -> T:
        if isinstance(target, type):
            target.__init__ = decorate(target.__init__)  # type: ignore[misc]
            return target
        signature = inspect.signature(target)
        rules: dict[str, Callable[[Any], Any]] = {}
        optional = set()
        for name, parameter in signature.parameters.items():
            annotation, refused = str(parameter.annotation), others.get(name, error)
            kind = annotation.removesuffix(" | None")
            # A Literal is written out, or an alias of the function's module.
            alias = target.__globals__.get(kind)
            if kind == "int" and name == "seed":
                rules[name] = functools.partial(check_seed, error=refused)
            elif kind == "int":
                rules[name] = functools.partial(
                    check_count, name, error=refused, least=_LEAST.get(name)
                )
            elif kind == "float":
                rules[name] = functools.partial(check_number, name, error=refused)
            elif kind.startswith("Literal["):
                choices = tuple(ast.literal_eval(kind.removeprefix("Literal")))
                rules[name] = functools.partial(check_choice, name, known=choices, error=refused)
            elif get_origin(alias) is Literal:
                rules[name] = functools.partial(
                    check_choice, name, known=get_args(alias), error=refused
                )
            if kind != annotation:
                optional.add(name)

        @functools.wraps(target)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return target(*args, **kwargs)  # which says what is missing
            for name, rule in rules.items():
                if name in bound.arguments and not (
                    name in optional and bound.arguments[name] is None
                ):
                    bound.arguments[name] = rule(bound.arguments[name])
            return target(*bound.args, **bound.kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate

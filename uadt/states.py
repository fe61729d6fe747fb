"""What a shaping remembers, to JSON and back, bit for bit."""

import math
import re
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from uadt.types import Shaping, State

__all__ = ["SCHEMA", "state_from_dict", "state_to_dict"]

SCHEMA = 1
"""The version of the form that `state_to_dict` writes."""

_Json = dict[str, Any]


def state_to_dict(state: State, *, shaping: Shaping | None = None) -> dict[str, Any]:
    """Write a state as plain dicts, lists and numbers, ready for ``json.dumps``.

    Numbers survive JSON bit for bit; NaN and the infinities, which JSON does not know, are
    written as words.

    Args:
        state: What a shaping returned, or its ``init()``.
        shaping: Whose state it is. With it, the form records the shaping's ``repr``, and a
            state is not restored into another one unnoticed.

    Returns:
        ``{"schema": 1, "shaping": …, "state": …}``.

    Raises:
        TypeError: If the state holds what JSON cannot carry; the words say where.

    Example:
        >>> from uadt.threshold import EmaState
        >>> state_to_dict(EmaState(threshold=0.25, step=3))["state"]
        {'EmaState': {'threshold': 0.25, 'step': 3}}
    """
    written = None if shaping is None else repr(shaping)
    return {"schema": SCHEMA, "shaping": written, "state": _encode(state, "state")}


def state_from_dict(shaping: Shaping, d: Mapping[str, Any], *, strict: bool = True) -> State:
    """Read a state that `state_to_dict` wrote.

    ``shaping.init()`` says what the state must look like: the types of the fields of its
    NamedTuples are followed, and nothing is imported or executed.

    Args:
        shaping: The shaping that will go on with the state.
        d: What was written, perhaps through ``json.dumps`` and ``json.loads``.
        strict: True refuses a state that was written by a shaping with other numbers. False
            accepts other numbers (a strength that was changed on purpose), never another form.

    Returns:
        A state equal to the one that was written.

    Raises:
        ValueError: If the schema, the shaping or the form differs; the words say in what.

    Example:
        >>> from uadt.shaping import UADT
        >>> shaping = UADT()
        >>> written = state_to_dict(shaping.init(), shaping=shaping)
        >>> state_from_dict(shaping, written) == shaping.init()
        True
        >>> state_from_dict(UADT(strength=0.3), written)
        Traceback (most recent call last):
            ...
        ValueError: the state was written by another shaping: strength=0.5 there, strength=0.3 here
    """
    if not isinstance(d, Mapping) or not {"schema", "shaping", "state"} <= set(d):  # pyright: ignore[reportUnnecessaryIsInstance] - read from a file
        raise ValueError(f"a written state has the keys schema, shaping, state; got {d!r}")
    if d["schema"] != SCHEMA:
        raise ValueError(f"the state must have schema {SCHEMA}, got {d['schema']!r}")
    if strict and d["shaping"] is not None and d["shaping"] != repr(shaping):
        difference = _difference(str(d["shaping"]), repr(shaping))
        raise ValueError(f"the state was written by another shaping: {difference}")
    return _decode_like(d["state"], shaping.init(), "state")


def _encode(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, tuple):
        parts = cast("tuple[Any, ...]", value)
        fields = _fields(parts)
        if fields is None:
            return [_encode(part, f"{where}[{i}]") for i, part in enumerate(parts)]
        pairs = zip(fields, parts, strict=True)
        written = {name: _encode(part, f"{where}.{name}") for name, part in pairs}
        return {type(parts).__name__: written}
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value)
        for key in items:
            if not isinstance(key, str):
                raise TypeError(f"{where} must have names as keys, got {key!r}")
        return {key: _encode(part, f"{where}[{key!r}]") for key, part in items.items()}
    raise TypeError(
        f"{where} must be made of numbers, names, tuples, NamedTuples and dicts, "
        f"got {type(value).__name__}"
    )


def _decode_like(written: Any, template: State, where: str) -> State:
    """Follow the state before the first batch; a chain's is a tuple of its parts'."""
    is_tuple = isinstance(template, tuple)
    parts = cast("tuple[Any, ...]", template)
    if is_tuple and _fields(parts) is None:
        if not isinstance(written, list | tuple):
            raise ValueError(f"{where} must be a list of {len(parts)}, got {written!r}")
        found = cast("list[Any]", written)
        if len(found) != len(parts):
            raise ValueError(f"{where} must hold {len(parts)} states, got {len(found)}")
        pairs = enumerate(zip(found, parts, strict=True))
        return tuple(_decode_like(one, like, f"{where}[{i}]") for i, (one, like) in pairs)
    return _decode(written, type(parts), where)


def _decode(written: Any, kind: Any, where: str) -> Any:
    """Read a value of the type ``kind``."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        kinds = get_args(kind)
        if written is None and type(None) in kinds:
            return None
        (kind,) = (k for k in kinds if k is not type(None))
        return _decode(written, kind, where)
    if origin is dict:
        _, inner = get_args(kind)
        items = _names(written, where)
        return {key: _decode(value, inner, f"{where}[{key!r}]") for key, value in items.items()}
    if origin is tuple:
        inner = get_args(kind)[0]
        if not isinstance(written, list | tuple):
            raise ValueError(f"{where} must be a list, got {written!r}")
        values = cast("list[Any]", written)
        return tuple(_decode(value, inner, f"{where}[{i}]") for i, value in enumerate(values))
    if hasattr(kind, "_fields"):
        return _decode_named(written, kind, where)
    if kind is float and written in ("nan", "inf", "-inf"):
        return float(written)
    if kind is float and isinstance(written, int) and not isinstance(written, bool):
        return float(written)
    if type(written) is not kind:
        raise ValueError(f"{where} must be {kind.__name__}, got {written!r}")
    return written


def _decode_named(written: Any, kind: Any, where: str) -> Any:
    """Read a NamedTuple, written as its name over its fields."""
    found = list(_names(written, where))
    if found != [kind.__name__]:
        raise ValueError(f"{where} must be {kind.__name__}, got {', '.join(found) or 'nothing'}")
    values = _names(written[kind.__name__], where)
    hints = get_type_hints(kind)
    if set(values) != set(hints):
        raise ValueError(f"{where} must have the fields {sorted(hints)}, got {sorted(values)}")
    fields = {name: _decode(values[name], hints[name], f"{where}.{name}") for name in hints}
    return kind(**fields)


def _fields(value: tuple[Any, ...]) -> tuple[str, ...] | None:
    """Return the names of a NamedTuple's fields; ``None`` for a plain tuple."""
    return getattr(value, "_fields", None)


def _names(written: Any, where: str) -> _Json:
    if not isinstance(written, dict):
        raise ValueError(f"{where} must be a dict, got {written!r}")
    return cast("_Json", written)


def _difference(there: str, here: str) -> str:
    """Say in which arguments two printed shapings differ."""
    split = re.compile(r"[(), ]+")
    ours, theirs = split.split(here), split.split(there)
    if len(ours) != len(theirs):
        return f"{there} there, {here} here"
    pairs = [(a, b) for a, b in zip(theirs, ours, strict=True) if a != b]
    return f"{', '.join(a for a, _ in pairs)} there, {', '.join(b for _, b in pairs)} here"

"""Configurations ↔ shapings, both ways, through omegaconf. The only table of names.

A shaping is a mapping. Its keys are the arguments, and ``name`` says which shaping it is::

    uadt: {strength: 0.5}                   # no name: UADT
    uadt: {name: edge}                      # another one, with its defaults
    uadt:                                   # several, first to last
      chain:
        - {name: uadt, strength: 0.5}
        - {name: clip, low: -3, high: 3}
    uadt: {name: keep_sign, shaping: {name: entropy_advantage, alpha: 0.4}}   # one inside another
    uadt: {name: "my_package.shapings:Mine", strength: 0.1}   # your own: module, colon, class

On a command line, as a dotlist, a chain is one word, and a dot leads inside::

    strength=0.5
    "chain=[{name: uadt, strength: 0.5}, {name: clip, low: -3, high: 3}]"
    name=keep_sign shaping.name=entropy_advantage shaping.alpha=0.4
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, is_dataclass, make_dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from uadt.shaping import (
    EDGE,
    GRPOS,
    GTPO,
    SEED,
    STARE,
    UADT,
    UCAS,
    Chain,
    Clip,
    EntropyAdvantage,
    HighEntropyTokens,
    KeepSign,
    MeanOne,
    Scale,
    chain,
)
from uadt.types import Shaping

__all__ = ["SHAPINGS", "schema", "shaping_from_config", "shaping_to_config"]

SHAPINGS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "uadt": UADT,
        "entropy_advantage": EntropyAdvantage,
        "high_entropy_tokens": HighEntropyTokens,
        "gtpo": GTPO,
        "grpo_s": GRPOS,
        "ucas": UCAS,
        "edge": EDGE,
        "seed": SEED,
        "stare": STARE,
        "clip": Clip,
        "scale": Scale,
        "keep_sign": KeepSign,
        "mean_one": MeanOne,
    }
)
"""Every name that a configuration may use. Nothing is added to it at run time."""


def shaping_from_config(config: Mapping[str, Any] | Path | Sequence[str]) -> Shaping:
    """Make the shaping that a configuration describes.

    Args:
        config: A mapping, such as a DictConfig, in the form above; the path of a YAML file that
            holds one; or a dotlist, ``["strength=0.3"]``, in which a chain is one entry. A single
            key ``uadt`` on top is taken off, so that a trainer's own key may stay.

    Returns:
        The shaping; an empty configuration is ``UADT()``.

    Raises:
        ValueError: If a name or a key is unknown (the words list the known ones), an argument is
            missing, or a value is not of its type or out of its range.
        ImportError: If the module of your own shaping cannot be imported.

    Example:
        >>> clip = {"name": "clip", "low": -3, "high": 3}
        >>> shaping_from_config({"chain": [{"name": "scale", "by": 0.5}, clip]})
        chain(Scale(by=0.5), Clip(low=-3.0, high=3.0))
        >>> shaping_from_config(["uadt.decay=0.99"]).decay
        0.99
        >>> shaping_from_config(["chain=[{name: scale, by: 2}, {name: clip, low: -3, high: 3}]"])
        chain(Scale(by=2.0), Clip(low=-3.0, high=3.0))
    """
    if isinstance(config, str | Path):
        config = cast("Mapping[str, Any]", OmegaConf.load(config))
    elif isinstance(config, Sequence):
        config = OmegaConf.from_dotlist(list(config))
    if isinstance(config, DictConfig):
        plain: Any = OmegaConf.to_container(
            config, resolve=True, structured_config_mode=SCMode.DICT
        )
    else:
        plain = dict(config)
    if set(plain) == {"uadt"}:
        plain = plain["uadt"] or {}
    return _shaping(plain, "uadt")


def shaping_to_config(shaping: Shaping) -> dict[str, Any]:
    """Write a shaping as the configuration that makes it again, every number shown.

    Args:
        shaping: A shaping of `SHAPINGS`, a dataclass of your own, or a chain of them.

    Returns:
        Plain dicts and numbers; ``OmegaConf.to_yaml`` prints them, and
        ``shaping_from_config(shaping_to_config(s)) == s``.

    Raises:
        ValueError: If a part is neither, such as a class defined inside of a function.

    Example:
        >>> print(OmegaConf.to_yaml(shaping_to_config(Clip(low=-1.0, high=2.0))), end="")
        name: clip
        low: -1.0
        high: 2.0
    """
    if isinstance(shaping, Chain):
        return {"chain": [shaping_to_config(part) for part in shaping.shapings]}
    kind = type(shaping)
    if not is_dataclass(kind) or "<locals>" in kind.__qualname__:
        raise ValueError(
            f"a shaping of {sorted(SHAPINGS)}, or a dataclass at the top of a module, can be "
            f"written, got {shaping!r}"
        )
    names = {one: name for name, one in SHAPINGS.items()}
    written: dict[str, Any] = {"name": names.get(kind, f"{kind.__module__}:{kind.__qualname__}")}
    for one in fields(cast("Any", shaping)):
        value = getattr(shaping, one.name)
        written[one.name] = shaping_to_config(value) if isinstance(value, Shaping) else value
    return written


def schema(name: str) -> type[Any]:
    """Return the structured config of a shaping: a dataclass for Hydra's ConfigStore.

    Args:
        name: A key of `SHAPINGS`, or a module, a colon and a class.

    Returns:
        A dataclass with ``name`` and the arguments, their types and their defaults.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> OmegaConf.structured(schema("clip")(low=-1.0, high=1.0)).high
        1.0
    """
    shaping = _class(name, "schema")
    hints = get_type_hints(shaping)
    columns: list[tuple[str, Any, Any]] = [("name", str, name)]
    for one in fields(shaping):
        default = one.default
        if default is MISSING:
            default = "???"  # omegaconf's word for an argument that has no default
        columns.append((one.name, _kind(hints[one.name]), field(default=default)))
    return make_dataclass(f"{shaping.__name__}Config", columns)


def _shaping(config: Any, where: str) -> Shaping:
    if not isinstance(config, Mapping):
        raise ValueError(f"{where} must be a mapping that describes a shaping, got {config!r}")
    keys = dict(cast("Mapping[str, Any]", config))
    if "chain" in keys:
        parts = keys.pop("chain")
        if keys:
            raise ValueError(f"{where} with a chain must hold nothing else, got {sorted(keys)}")
        if isinstance(parts, str | Mapping) or not isinstance(parts, Sequence):
            raise ValueError(f"{where}.chain must be a list of shapings, got {parts!r}")
        found = enumerate(cast("Sequence[Any]", parts))
        return chain(*(_shaping(part, f"{where}.chain[{i}]") for i, part in found))
    name = keys.pop("name", "uadt")
    shaping = _class(name, where)
    known = [one.name for one in fields(shaping)]
    unknown = sorted(set(keys) - set(known))
    if unknown:
        raise ValueError(
            f"{where} ({name}) must have keys of {known}, got {', '.join(map(repr, unknown))}"
        )
    missing = [one.name for one in fields(shaping) if _required(one) and one.name not in keys]
    if missing:
        raise ValueError(f"{where} ({name}) needs {', '.join(missing)}, got {sorted(keys)}")
    hints = get_type_hints(shaping)
    inside = {key: value for key, value in keys.items() if hints[key] is Shaping}
    try:
        flat = {key: _number(value, hints[key]) for key, value in keys.items() if key not in inside}
        checked = cast("DictConfig", OmegaConf.merge(OmegaConf.structured(schema(name)), flat))
        arguments = {key: checked[key] for key in flat}
    except OmegaConfBaseException as error:
        raise ValueError(f"{where} ({name}): {str(error).splitlines()[0]}") from None
    nested = {key: _shaping(value, f"{where}.{key}") for key, value in inside.items()}
    try:
        return shaping(**arguments, **nested)
    except ValueError as error:
        raise ValueError(f"{where} ({name}): {error}") from None


def _class(name: object, where: str) -> type[Any]:
    if isinstance(name, str) and name in SHAPINGS:
        return SHAPINGS[name]
    module, colon, attribute = str(name).partition(":")
    if not colon:
        raise ValueError(
            f"{where}: the name must be one of {sorted(SHAPINGS)}, or module:Class, got {name!r}"
        )
    found = getattr(import_module(module), attribute, None)
    if not isinstance(found, type) or not is_dataclass(found):
        raise ValueError(f"{where}: {name!r} must be a dataclass, got {found!r}")
    return found


def _number(value: Any, hint: Any) -> Any:
    """Read 1 as 1.0 where a float or a word is meant: omegaconf does so only for a lone float."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and float in get_args(hint) else value


def _required(one: Field[Any]) -> bool:
    return one.default is MISSING


def _kind(hint: Any) -> Any:
    """Return the type that omegaconf knows for the type of an argument."""
    if hint is Shaping:
        return Any
    if get_origin(hint) is Literal:
        return str
    choices = get_args(hint)
    if not choices:
        return hint
    kinds = tuple({_kind(choice): None for choice in choices})
    return Union[kinds]  # noqa: UP007 - built at run time

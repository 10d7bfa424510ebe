"""Read settings (YAML files, `section.key=value`, flags) as checked dataclasses, and tell how two of them differ."""

import argparse
import dataclasses
import difflib
import os
import types
import typing
from contextlib import suppress
from pathlib import Path

import yaml


def add_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """
    Add a flag `--name` for each field, with `help` and `aliases` of its metadata. What `parse_args` returns has only
    those that were typed, so that defaults stand in the dataclass and nowhere else.
    """
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        flags = [f"--{field.name}", *field.metadata["aliases"]]
        description = field.metadata["help"]
        if field.default not in (None, False, ""):
            description += f" (default: {field.default})"
        kind = _plain_types(hints[field.name])[0]
        options: dict[str, typing.Any]
        if kind is bool:
            options = {"action": "store_true" if field.default is False else argparse.BooleanOptionalAction}
        elif kind is list:
            options = {"nargs": "+"}
        else:
            options = {"type": kind, "metavar": kind.__name__.upper()}
        parser.add_argument(*flags, dest=field.name, default=argparse.SUPPRESS, help=description, **options)


def read_recipe(
    cls: type, path: str | os.PathLike | None, overrides: typing.Sequence[str] = (), flags: dict | None = None
):
    """
    Return a `cls` (a dataclass, sections of it dataclasses) from a YAML file (None: its defaults), then overrides such
    as `stage1.epochs=2`, then values by name from `flags`.
    Raises ValueError naming the file or override, the key, and the nearest key that exists.
    """
    values = {} if path is None else _read_yaml(cls, Path(path))
    for override in overrides:
        _apply_override(values, override)
    return _build(cls, values | (flags or {}), "settings" if path is None else str(path))


def _read_yaml(cls: type, path: Path) -> dict:
    """Return the keys and values of a YAML file for a `cls`. Raises ValueError naming the file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({error})") from None
    _check_is_section(cls, values, str(path))
    return values


def _check_is_section(cls: type, values, where: str) -> None:
    """Raise ValueError naming the keys of `cls` unless `values` are a dict."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}: got {values!r}, expected keys {[field.name for field in dataclasses.fields(cls)]}")


def _apply_override(values: dict, override: str) -> None:
    """Set what an override such as `stage1.epochs=2` says in `values`. Raises ValueError naming the override."""
    keys, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override {override!r}, expected section.key=value")
    *sections, key = keys.split(".")
    target = values
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ValueError(f"override {override!r}: {section} is a value, not a section")
    try:
        target[key] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r}: the value is not YAML ({error})") from None


def _build(cls: type, values: dict, where: str):
    """Return a `cls` of checked `values`, sections likewise. Raises ValueError naming place, key and value."""
    _check_is_section(cls, values, where)
    hints, arguments = typing.get_type_hints(cls), {}
    for key, value in values.items():
        if key not in hints:
            matches = difflib.get_close_matches(str(key), hints, n=1)
            hint = f", did you mean {matches[0]!r}?" if matches else f", expected one of {sorted(hints)}"
            raise ValueError(f"{where}: unknown key {key!r}{hint}")
        if dataclasses.is_dataclass(hints[key]):
            arguments[key] = _build(hints[key], value, f"{where}: {key}")
        else:
            arguments[key] = _as_type(value, hints[key], f"{where}: {key}")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _plain_types(hint) -> tuple[type, ...]:
    """Return the types of an annotation, such as (float, NoneType) of `float | None`."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    return tuple(typing.get_origin(kind) or kind for kind in kinds)


def _as_type(value, hint, where: str):
    """Return the value, a number as float where its field is one. Raises ValueError if it is of another type."""
    kinds = _plain_types(hint)
    if float in kinds and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            value = float(value)  # YAML reads 3e-4 as text
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{where}: got {value!r}, expected {hint}")
    return value


def flat(values: dict, prefix: str = "") -> dict:
    """Return {"a": {"b": 1}} as {"a.b": 1}."""
    flattened: dict[str, typing.Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flattened |= flat(value, f"{prefix}{name}.")
        else:
            flattened[f"{prefix}{name}"] = value
    return flattened


def differences(before: dict, now: dict, free: typing.Collection[str] = ()) -> list[str]:
    """Return what differs between two sets of settings, in words, but for those that are `free` to change."""
    before, now = flat(before), flat(now)
    return [
        f"{name}: {before.get(name, 'not there')!r} before, {now.get(name, 'not there')!r} now"
        for name in sorted(before.keys() | now.keys())
        if name not in free and before.get(name) != now.get(name)
    ]

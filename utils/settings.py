"""Settings: YAML files and `section.key=value` -> checked dataclasses, and what differs between two of them."""

import dataclasses
import difflib
import os
import types
import typing
from contextlib import suppress
from pathlib import Path

import yaml


def read_recipe(cls: type, path: str | os.PathLike, overrides: list[str] = ()):
    """
    A `cls` (a dataclass of dataclasses) from a YAML file and overrides such as `stage1.epochs=2`.
    Raises ValueError naming the file or override, the key, and the nearest key that exists.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {values!r}, expected keys {[field.name for field in dataclasses.fields(cls)]}")
    for override in overrides:
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
    return _build(cls, values, str(path))


def _build(cls: type, values: dict, where: str):
    if not isinstance(values, dict):
        raise ValueError(f"{where}: got {values!r}, expected keys {[field.name for field in dataclasses.fields(cls)]}")
    hints, built = typing.get_type_hints(cls), {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f", expected one of {sorted(hints)}"
            raise ValueError(f"{where}: unknown key {key!r}{hint}")
        if dataclasses.is_dataclass(hints[key]):
            built[key] = _build(hints[key], value, f"{where}: {key}")
        else:
            built[key] = _checked(value, hints[key], f"{where}: {key}")
    try:
        return cls(**built)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _checked(value, hint, where: str):
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    plain = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if float in plain and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            value = float(value)  # YAML reads 3e-4 as text
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        raise ValueError(f"{where}: got {value!r}, expected {hint}")
    return value


def flat(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    found = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return found


def differences(before: dict, now: dict, free: typing.Collection[str] = ()) -> list[str]:
    """What differs between two sets of settings, in words, but for those that are `free` to change."""
    before, now = flat(before), flat(now)
    return [
        f"{name}: {before.get(name, 'not there')!r} before, {now.get(name, 'not there')!r} now"
        for name in sorted(before.keys() | now.keys())
        if name not in free and before.get(name) != now.get(name)
    ]

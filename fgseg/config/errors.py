"""Errors in one line: mistakes of the user name where, what was got, what holds and what to do."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo


class ConfigError(Exception):
    """A mistake of the user, in one line: where, what was got, what holds, what to do."""


class FaultError(Exception):
    """A database, server or file that still fails after retries, in one line without credentials."""


def one_line(error: BaseException, *, with_type: bool = False, first_line: bool = False) -> str:
    """Format the message of an error in one line.

    Args:
        error: any exception.
        with_type: put the name of its class before the message: `ValueError: invalid literal`.
        first_line: keep only the first line of the message.

    Returns:
        The message with line breaks as spaces; the name of the class if there is no message.
    """
    lines = str(error).strip().splitlines()
    text = " ".join(" ".join(lines[:1] if first_line else lines).split())
    name = type(error).__name__
    return f"{name}: {text}" if text and with_type else text or name


def check_name(name: str, known: Iterable[str], message: str) -> None:
    """Raise ConfigError with the message and the nearest known name, unless the name is known."""
    if name not in known:
        raise ConfigError(f"{message}; {nearest(name, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name closest to a wrong one; list all known names if none is close."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"


def explain(error: ValidationError, model: type[BaseModel], origins: Mapping[str, str]) -> str:
    """Format the first error of pydantic as: where, what was got, what holds.

    Args:
        error: raised by `model.model_validate`.
        model: the settings that were validated.
        origins: by dotted name, the file or flag that gave the setting.
    """
    first = error.errors()[0]
    *path, name = (str(part) for part in first["loc"])
    key = ".".join([*path, name])
    where = f"{origins[key]}: {key}" if key in origins else key
    field = setting_at(model, path, name)
    if field is None:
        return f"{where}: no such setting; {nearest(name, section_at(model, path).model_fields)}"
    if first["type"] == "missing":
        return f"{where}: is missing, must be {accepted_values(field)}"
    out_of_range = first["type"].startswith(("greater_than", "less_than"))
    rule = interval(field) if out_of_range else accepted_values(field)
    return f"{where}: got {shown(first['input'])}, must be {rule}"


def shown(value: Any) -> str:
    """Format a value of a setting; nothing for None, which an empty entry of YAML gives."""
    return "nothing" if value is None else repr(value)


def setting_at(model: type[BaseModel], path: Sequence[str], name: str) -> FieldInfo | None:
    """Return a setting of the section at a path; None if the section has no such setting."""
    kind = model.model_fields[path[0]].annotation if path else None
    value: Any = get_args(kind)[1] if get_origin(kind) is dict else None
    if get_origin(value) is Annotated:  # a mapping of numbers, such as class_weights
        return FieldInfo.from_annotation(value)
    return section_at(model, path).model_fields.get(name)


def section_at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    """Return the section at a path of names; the path may lead through dictionaries of sections."""
    if not path:
        return model
    inner = model.model_fields[path[0]].annotation
    if get_origin(inner) is dict:
        return section_at(get_args(inner)[1], path[2:])
    assert isinstance(inner, type) and issubclass(inner, BaseModel)
    return section_at(inner, path[1:])


NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def accepted_values(field: FieldInfo) -> str:
    """Describe the values that a setting accepts: `a number in [0, 1]`, `one of: last, best`."""
    options = [option for option in (get_args(field.annotation) or (field.annotation,)) if option is not type(None)]
    if get_origin(field.annotation) is Literal:
        return f"one of: {', '.join(map(str, options))}"
    kind = NAMES.get(options[0], str(options[0])) + (f" such as {field.examples[0]}" if field.examples else "")
    optional = " or nothing" if len(options) < len(get_args(field.annotation)) else ""
    return " ".join(filter(None, [kind, interval(field)])) + optional


def interval(field: FieldInfo) -> str:
    """Describe the range of a numeric setting: `in [0, 1]`, `above 0`; empty if it has none."""
    given = ((name, getattr(m, name)) for m in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(m, name))
    bounds = {name: f"{bound:g}" if isinstance(bound, float) else str(bound) for name, bound in given}
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None and high is not None:
        return f"in {'[' if 'ge' in bounds else '('}{low}, {high}{']' if 'le' in bounds else ')'}"
    if low is not None:
        return f"at least {low}" if "ge" in bounds else f"above {low}"
    return f"at most {high}" if high is not None else ""

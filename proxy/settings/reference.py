"""
The settings in words: what a problem says is expected, and the reference for operators.

Both come from the fields of the model and nothing else, so neither can say what the other does not.
"""

import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import attrs
from attrs import frozen

from proxy.settings.model import Actions, Form, Network, Secret, Settings, settings_of, variable

_UNIONS = (Union, types.UnionType)
_NOTHING_SAID: Mapping[str, Any] = {"unit": "", "minimum": None, "example": ""}


def without_none(annotation: Any) -> Any:
    """Take the ``| None`` off a type."""
    if get_origin(annotation) not in _UNIONS:
        return annotation
    kept = tuple(option for option in get_args(annotation) if option is not types.NoneType)
    return kept[0] if len(kept) == 1 else annotation


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """List what a value may be: several types for words or a mapping, one for everything else."""
    annotation = without_none(annotation)
    if annotation == Network or get_origin(annotation) not in _UNIONS:
        return (annotation,)
    return get_args(annotation)


def is_section(annotation: Any) -> bool:
    """Tell whether a type is a mapping of known keys."""
    return attrs.has(annotation) and annotation is not Actions


def is_scalar(annotation: Any) -> bool:
    """Tell whether a value of this type is a single word or number, so that a text needs no YAML around it."""
    return all(
        get_origin(option) in (Literal, Annotated) or option in (str, int, bool, Path, Secret, Network)
        for option in alternatives(annotation)
    )


def describe(annotation: Any, metadata: Mapping[str, Any] = _NOTHING_SAID) -> str:
    """
    Say what a value may be.

    Args:
        annotation: The type of the field, or of one item.
        metadata: What the field says besides, as ``setting`` declares it.
    """
    options = alternatives(annotation)
    return " or ".join(_describe_one(option, metadata) for option in options)


def words(options: tuple[Any, ...]) -> str:
    """Join words as a sentence does: ``a, b or c``."""
    texts = [str(option) for option in options]
    return " or ".join((", ".join(texts[:-1]), texts[-1])) if len(texts) > 1 else texts[0]


def _describe_one(annotation: Any, metadata: Mapping[str, Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        form: Form = arguments[1]
        return form.expected
    if origin is Literal:
        return words(arguments)
    if origin is tuple:
        return "a list of mappings" if is_section(arguments[0]) else f"a list, each item {describe(arguments[0])}"
    if annotation is Actions or origin is not None:
        return f"a mapping such as {metadata['example']}" if metadata["example"] else "a mapping"
    if annotation is int:
        return f"an integer from {metadata['minimum']} to {metadata['maximum']}"
    return _PLAIN.get(annotation, "a mapping")


_PLAIN: Mapping[Any, str] = {
    bool: "true or false",
    str: "text",
    Secret: "text",
    Path: "a path",
    Network: "a network such as 10.0.0.0/8 or fd00::/8",
}


@frozen
class Row:
    """One key path, e.g. ``listeners[].port``."""

    key: str
    field: "attrs.Attribute[Any]"

    @property
    def variable(self) -> str:
        """The environment variable; of the first item where the key is in a list."""
        return variable(self.key.replace("[]", "[0]"))

    @property
    def default(self) -> str:
        """The default as it would be written in YAML."""
        default, shown = self.field.default, self.field.metadata["shown"]
        if shown:
            return str(shown)
        if default is attrs.NOTHING:
            return "required"
        return "`{}`" if isinstance(default, attrs.Factory) else f"`{_yaml(default)}`"  # type: ignore[arg-type]


def rows(section: type = Settings, path: str = "") -> Iterator[Row]:
    """List every key path, sections before their keys."""
    for field in settings_of(section):
        key = f"{path}{field.name}"
        yield Row(key, field)
        item = get_args(field.type)[0] if get_origin(field.type) is tuple else None
        if is_section(field.type):
            yield from rows(field.type, f"{key}.")  # type: ignore[arg-type]
        elif item is not None and is_section(item):
            yield from rows(item, f"{key}[].")


def markdown() -> str:
    """Write the reference as one Markdown table with a row for each key path."""
    lines = ["| Key | Value | Default | Unit | Meaning | Environment variable |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows():
        metadata = row.field.metadata
        value = describe(row.field.type, metadata)
        cells = (f"`{row.key}`", value, row.default, metadata["unit"], metadata["help"], f"`{row.variable}`")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _yaml(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"[{', '.join(map(_yaml, value))}]" if isinstance(value, tuple) else str(value)

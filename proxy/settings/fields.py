"""What the fields of the model say about themselves: their types sorted, and in words."""

import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import attrs
from attrs import frozen

from proxy.settings.model import Actions, Settings
from proxy.settings.values import Form, Network, Secret, variable

Field: TypeAlias = "attrs.Attribute[Any]"

_PLAIN: Mapping[Any, str] = {
    bool: "true or false",
    str: "text",
    Secret: "text",
    Path: "a path",
    Network: "a network such as 10.0.0.0/8 or fd00::/8",
}
_NO_METADATA: Mapping[str, Any] = {"example": ""}


def keys_of(section: type) -> dict[str, Field]:
    """List the keys of a section by name, in the order in which they are declared."""
    return {field.name: field for field in attrs.fields(section) if "help" in field.metadata}


def without_none(annotation: Any) -> Any:
    """Take the ``| None`` off a type."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    kept = tuple(option for option in get_args(annotation) if option is not types.NoneType)
    return kept[0] if len(kept) == 1 else annotation


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """List the types a value may have: several for words or a mapping, one for everything else."""
    annotation = without_none(annotation)
    if annotation == Network or get_origin(annotation) not in (Union, types.UnionType):
        return (annotation,)
    return get_args(annotation)


def is_section(annotation: Any) -> bool:
    """Tell whether a type is a mapping of known keys."""
    return attrs.has(annotation) and annotation is not Actions


def is_scalar(annotation: Any) -> bool:
    """Tell whether every value of a type is a single word or number."""
    return all(
        get_origin(option) in (Literal, Annotated) or option in (str, int, bool, Path, Secret, Network)
        for option in alternatives(annotation)
    )


def form_of(annotation: Any) -> Form | None:
    """Find the form that texts of a type must have."""
    return get_args(annotation)[1] if get_origin(annotation) is Annotated else None


def secret_twin(section: type, name: str) -> str:
    """Name the other key of a secret: the file for the value, the value for the file; empty where there is none."""
    secrets = {field.name for field in keys_of(section).values() if without_none(field.type) is Secret}
    if name in secrets:
        return f"{name}_file"
    return name.removesuffix("_file") if name.removesuffix("_file") in secrets else ""


def describe(annotation: Any, metadata: Mapping[str, Any] = _NO_METADATA) -> str:
    """
    Say what a value may be: for a problem what is expected, for the reference what can be written.

    Args:
        annotation: The type of the field, or of an item of it.
        metadata: What the field says besides, from ``model.about``.
    """
    texts: list[str] = []
    for option in alternatives(annotation):
        texts += get_args(option) if get_origin(option) is Literal else [_describe_one(option, metadata)]
    return " or ".join((", ".join(texts[:-1]), texts[-1])) if len(texts) > 1 else texts[0]


def _describe_one(annotation: Any, metadata: Mapping[str, Any]) -> str:
    form = form_of(annotation)
    if form:
        return form.expected
    if annotation is int:
        return f"an integer from {metadata['minimum']} to {metadata['maximum']}"
    if get_origin(annotation) is tuple:
        item = get_args(annotation)[0]
        return "a list of mappings" if is_section(item) else f"a list, each item {describe(item)}"
    example = "" if is_section(annotation) else metadata["example"]
    return _PLAIN.get(annotation) or (f"a mapping such as {example}" if example else "a mapping")


@frozen
class Row:
    """One key path, with ``[]`` for the items of a list: ``listeners[].port``."""

    key: str
    field: Field

    @property
    def variable(self) -> str:
        """The environment variable; for the first item where the key is in a list."""
        return variable(self.key.replace("[]", "[0]"))


def rows(section: type = Settings, path: str = "") -> Iterator[Row]:
    """List every key path, sections before their keys."""
    for name, field in keys_of(section).items():
        yield Row(f"{path}{name}", field)
        in_list = get_origin(field.type) is tuple
        inner: Any = get_args(field.type)[0] if in_list else field.type
        if is_section(inner):
            yield from rows(inner, f"{path}{name}[]." if in_list else f"{path}{name}.")

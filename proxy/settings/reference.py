"""The reference for operators and a JSON schema, both from the fields of the model and nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import attrs

from proxy.settings.fields import Row, alternatives, describe, is_section, keys_of, rows
from proxy.settings.model import Actions, Settings
from proxy.settings.values import Network, Secret

_COLUMNS = ("Key", "Value", "Default", "Unit", "Meaning", "Environment variable")


def markdown() -> str:
    """Write the reference as one Markdown table with a row for each key path."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for row in rows():
        metadata = row.field.metadata
        value = describe(row.field.type, metadata)
        lines.append((f"`{row.key}`", value, _default(row), metadata["unit"], metadata["help"], f"`{row.variable}`"))
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n" for cells in lines)


def _default(row: Row) -> str:
    default, shown = row.field.default, row.field.metadata["shown"]
    if shown:
        return str(shown)
    if default is attrs.NOTHING:
        return f"required, here or as `{row.field.name}_file`" if row.field.type is Secret else "required"
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # a class, which the stubs call a function
        return "`{}`"
    return "not set" if default is None else f"`{_yaml(default)}`"


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"[{', '.join(map(_yaml, value))}]" if isinstance(value, tuple) else str(value)


def json_schema() -> dict[str, Any]:
    """
    Describe the settings file as a JSON schema (draft 2020-12), for editors and charts.

    It is a little stricter than the loader, which also takes ``"25"`` for a number, and it knows no forms of text.
    """
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cmail-proxy", **_section(Settings)}


def _section(section: type) -> dict[str, Any]:
    keys = keys_of(section)
    secrets = [name for name, field in keys.items() if Secret in alternatives(field.type)]
    required = [name for name, field in keys.items() if field.default is attrs.NOTHING]
    schema: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: {**_value(field.type, field.metadata), "description": field.metadata["help"]}
            for name, field in keys.items()
        },
        "required": [name for name in required if name not in secrets],
    }
    for name in secrets:
        both = {"required": [name, f"{name}_file"]}
        either = {"oneOf": [{"required": [name]}, {"required": [f"{name}_file"]}]}
        schema |= either if name in required else {"not": both}
    return schema


def _value(annotation: Any, metadata: Mapping[str, Any]) -> dict[str, Any]:
    options = alternatives(annotation)
    if len(options) > 1:
        return {"anyOf": [_value(option, metadata) for option in options]}
    (option,) = options
    origin, arguments = get_origin(option), get_args(option)
    if option is Actions:
        by_class, by_provider = (_value(field.type, metadata) for field in attrs.fields(Actions))
        return {**by_class, "additionalProperties": by_provider["additionalProperties"]}
    if is_section(option):
        return _section(option)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _value(arguments[0], metadata)}
    if option is bool:
        return {"type": "boolean"}
    if option is int:
        return {"type": "integer", "minimum": metadata["minimum"], "maximum": metadata["maximum"]}
    if origin is Annotated or option in (str, Path, Secret, Network):
        return {"type": "string", "minLength": 1}
    key, item = arguments
    value = _value(item, metadata)
    if get_origin(key) is Literal:  # by name and not by propertyNames, whose errors Helm shows at another place
        return {"type": "object", "properties": dict.fromkeys(get_args(key), value), "additionalProperties": False}
    return {"type": "object", "propertyNames": {"minLength": 1}, "additionalProperties": value}

"""
The values: what is wrong with them is told at install, and file, schema, templates and README know the same ones.

Each mistake in tests/chart/bad_values has its own text; ``.expected`` has its lines, one for each problem.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from proxy import docs_chart
from proxy.settings import reference
from tests.chart.rendering import CHART, VALUES, Helm

FOLDER = Path(__file__).parent / "bad_values"
CASES = sorted(FOLDER.glob("*.yaml"))
TEXT = (CHART / "values.yaml").read_text("utf-8")
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text("utf-8"))
NOT_FOR_TEMPLATES = {"global", "enabled"}
"""Values of which Helm and other charts make use, and this one none."""


# Mistakes


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_mistake_has_its_own_message(each_helm: Helm, path: Path) -> None:
    """Nothing is rendered, and every problem is told at once, where it is and what would do."""
    done = each_helm.template([path])
    assert done.returncode != 0
    assert done.stdout == ""
    told = sorted(line.strip() for line in done.stderr.splitlines() if re.match(r"\s*- ", line))
    assert told == sorted(path.with_suffix(".expected").read_text("utf-8").splitlines())
    assert "in-clear" not in done.stderr


def test_mistakes_are_all_different() -> None:
    """No file without its text, and no text twice."""
    texts = [path.with_suffix(".expected").read_text("utf-8") for path in CASES]
    assert len(set(texts)) == len(texts)
    assert {path.stem for path in FOLDER.iterdir()} == {path.stem for path in CASES}


def test_every_check_of_the_templates_has_its_mistake() -> None:
    """Each text that the templates can say is said for some file."""
    template = (CHART / "templates" / "_settings.tpl").read_text("utf-8")
    formats = re.findall(r'append \$problems (?:\(printf )?"((?:[^"\\]|\\.)*)"', template)
    assert len(formats) == template.count("append $problems") >= 18
    told = "\n".join(path.with_suffix(".expected").read_text("utf-8") for path in CASES)
    for each in formats:
        words = r".+".join(re.escape(part) for part in re.split(r"%[sd]", each))
        assert re.search(f"^- {words}$", told, re.MULTILINE), each


# One list of values


def by_path(node: Any, path: str = "") -> Iterator[str]:
    """The paths of all values in a file that the chart knows; below others, keys are the user's."""
    schema = part_of_schema(path) if path else SCHEMA
    if isinstance(node, dict) and "properties" in schema and path != "config":
        for key, each in node.items():
            yield from by_path(each, f"{path}.{key}".lstrip("."))
    else:
        yield path


def part_of_schema(path: str) -> dict[str, Any]:
    """The schema of a value."""
    part = SCHEMA
    for key in path.split("."):
        part = part["properties"][key]
    return part


def in_schema(part: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths of all values in the schema."""
    if "properties" not in part:
        yield path
    else:
        for key, each in part["properties"].items():
            yield from in_schema(each, f"{path}.{key}".lstrip("."))


def test_file_and_schema_have_the_same_values() -> None:
    """What can be set has a default in the file, and is known to the schema; every mapping of known keys is closed."""
    assert sorted(by_path(yaml.safe_load(TEXT))) == sorted(in_schema(SCHEMA))
    open_ones = [
        part for part in parts(SCHEMA) if "properties" in part and part.get("additionalProperties", True) is True
    ]
    assert open_ones == []


def parts(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in the schema."""
    if isinstance(node, dict):
        yield node
        for each in node.values():
            yield from parts(each)
    elif isinstance(node, list):
        for each in node:
            yield from parts(each)


def test_schema_is_one_and_takes_the_defaults() -> None:
    """The schema itself is lawful, and nobody has to change a default to please it."""
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert list(jsonschema.Draft7Validator(SCHEMA).iter_errors(yaml.safe_load(TEXT))) == []


def test_schema_has_the_settings_own() -> None:
    """A misspelt setting fails at install because the settings' schema is in that of the values, as it is now."""
    text = (CHART / "values.schema.json").read_text("utf-8")
    assert docs_chart.schema(text) == text, "run python -m proxy.docs --write"
    settings = reference.json_schema()
    assert SCHEMA["definitions"]["settings"]["properties"] == settings["properties"]
    assert SCHEMA["properties"]["config"] == {"$ref": "#/definitions/settings"}


def test_every_value_is_explained() -> None:
    """Each has a comment of its own, or stands below one."""
    found = docs_chart.values(TEXT)
    assert [each.key for each in found if not each.text] == []
    for path in in_schema(SCHEMA):
        assert any(path == each.key or path.startswith(f"{each.key}.") for each in found), path
    assert len({each.key for each in found}) == len(found)


def test_every_value_is_used_by_a_template() -> None:
    """No value is left over that would do nothing: by its path, or below a group that a template goes into."""
    texts = [path.read_text("utf-8") for path in (CHART / "templates").rglob("*") if path.is_file()]
    for path in by_path(yaml.safe_load(TEXT)):
        group, _, rest = path.partition(".")
        last = rest.rpartition(".")[2]
        used = [text for text in texts if re.search(rf"(?:\.Values|\$v)\.{group}\b", text)]
        if path not in NOT_FOR_TEMPLATES:
            assert used, path
            assert not last or any(re.search(rf'(?:\.|"){re.escape(last)}\b', text) for text in used), path


def test_every_value_is_set_in_a_values_file() -> None:
    """Each is something else than its default in some file of ci/: all that is checked there has seen every switch."""
    defaults = {each.key: json.loads(each.default) for each in docs_chart.values(TEXT)}
    changed: set[str] = set()
    for given in [yaml.safe_load(path.read_text("utf-8")) for path in VALUES]:
        for key, default in defaults.items():
            value = given
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None and value != default:
                changed.add(key)
    assert set(defaults) - changed == NOT_FOR_TEMPLATES

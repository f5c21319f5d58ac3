"""What the API server would say of an object: the schemas of Kubernetes, and own ones of the monitoring kinds."""

import functools
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry, Resource

from tests.chart.rendering import OLDEST_KUBERNETES, Object

OWN = Path(__file__).parent / "schemas"
_SHIPPED = files("kubernetes_validate") / "kubernetes-json-schema"
_FOLDER = re.compile(r"v(1\.([0-9]+)\.0)-local-strict")


def versions() -> list[str]:
    """Every version of Kubernetes whose schemas are at hand and that the chart supports, the oldest first."""
    found = [match for each in _SHIPPED.iterdir() if (match := _FOLDER.fullmatch(each.name))]
    oldest = int(OLDEST_KUBERNETES.split(".")[1])
    return [match[1] for match in sorted(found, key=lambda match: int(match[2])) if int(match[2]) >= oldest]


OLDEST, NEWEST = versions()[0], versions()[-1]


@functools.cache
def _definitions(version: str) -> Registry[Any]:
    text = (_SHIPPED / f"v{version}-local-strict" / "_definitions.json").read_text("utf-8")
    return Resource.from_contents(json.loads(text)) @ Registry()


@functools.cache
def _validator(api_version: str, kind: str, version: str) -> jsonschema.Draft202012Validator:
    group, _, name = api_version.rpartition("/")
    if group == "monitoring.coreos.com":
        own = json.loads((OWN / f"{kind.lower()}-{name}.json").read_text("utf-8"))
        # What all objects have in common is the cluster's own.
        schema: dict[str, Any] = own
    else:
        short = "-".join(filter(None, (group.partition(".")[0], name)))
        text = (_SHIPPED / f"v{version}-local-strict" / f"{kind.lower()}-{short}.json").read_text("utf-8")
        schema = json.loads(text)
    registry = Resource.from_contents(schema) @ _definitions(version)
    return jsonschema.Draft202012Validator(schema, registry=registry)


def problems(found: Object, version: str) -> list[str]:
    """
    List all that is wrong with an object in a version of Kubernetes; a field that it does not know is wrong.

    A key without a value is wrong, too: the API server would drop it, so it says nothing.
    """
    name = f"{found['kind']} {found['metadata']['name']}"
    errors = _validator(found["apiVersion"], found["kind"], version).iter_errors(found)
    told = [f"{name}, {error.json_path}: {error.message}" for error in errors]
    return told + [f"{name}, {path}: nothing" for path in _nothing(found)]


def _nothing(node: Any, path: str = "$") -> list[str]:
    if isinstance(node, dict):
        return [each for key, child in node.items() for each in _nothing(child, f"{path}.{key}")]
    if isinstance(node, list):
        return [each for index, child in enumerate(node) for each in _nothing(child, f"{path}[{index}]")]
    return [path] if node is None else []

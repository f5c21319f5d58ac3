"""The chart as Helm renders it, and the objects that come of it."""

import functools
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml
from attrs import frozen

from tests.conftest import require_tool
from tests.docs.pages import ROOT

CHART = ROOT / "charts" / "cmail-proxy"
LEGACY_APP = ROOT / "charts" / "examples" / "legacy-app"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
HELMS = ("helm3", "helm4")
NEWEST = HELMS[-1]
OLDEST_KUBERNETES = "1.29.0"
RELEASE, NAMESPACE = "shop", "mail"

Object: TypeAlias = dict[str, Any]


def _each(paths: Sequence[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("values", paths, ids=lambda path: path.name.removesuffix("-values.yaml"))


every = _each(VALUES)
"""Marks a test that is done with every values file."""
with_pods = _each([path for path in VALUES if not path.name.startswith("sidecar")])
"""Marks one that is done with those that give pods."""


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it strictly: no key twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise AssertionError(f"keys that stand twice: {twice}, {node.start_mark}")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def objects(text: str) -> list[Object]:
    """Read all documents of a text; a key that stands twice is an error."""
    return [each for each in yaml.load_all(text, _Loader) if each is not None]


@frozen
class Helm:
    """One of the two helms."""

    name: str
    path: str

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of it, which touches nothing of the user's."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
        return subprocess.run(
            [self.path, *map(str, arguments)], capture_output=True, text=True, env=environ, timeout=50, check=False
        )

    def template(
        self,
        values: Sequence[Path] = (),
        *arguments: str,
        chart: Path = CHART,
        release: str = RELEASE,
        kubernetes: str = OLDEST_KUBERNETES,
    ) -> subprocess.CompletedProcess[str]:
        """Render a chart with values files."""
        files = [f"--values={path}" for path in values]
        return self.run(
            "template", release, chart, f"--namespace={NAMESPACE}", f"--kube-version={kubernetes}", *files, *arguments
        )

    def render(
        self, values: Sequence[Path] = (), *arguments: str, chart: Path = CHART, release: str = RELEASE
    ) -> list[Object]:
        """Render a chart, which must work, and read the result. It is shared among tests: leave it as it is."""
        return _render(self, tuple(values), arguments, chart, release)


@functools.cache
def _render(
    helm: Helm, values: tuple[Path, ...], arguments: tuple[str, ...], chart: Path, release: str
) -> list[Object]:
    done = helm.template(values, *arguments, chart=chart, release=release)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return objects(done.stdout)


def helm(name: str = NEWEST) -> Helm:
    """One of the helms; without it the test is skipped, or fails where it may not."""
    return Helm(name, require_tool(name))


def of_kind(found: Sequence[Object], *kinds: str) -> list[Object]:
    """The objects of some kinds."""
    return [each for each in found if each["kind"] in kinds]


def one(found: Sequence[Object], kind: str, name: str = "") -> Object:
    """The only object of a kind, or of that name."""
    (found_one,) = [each for each in of_kind(found, kind) if name in ("", each["metadata"]["name"])]
    return found_one


@frozen
class Pod:
    """
    A pod, or the template of one.

    Attributes:
        owner: The object it stands in.
        metadata: Its labels and annotations.
    """

    owner: Object
    metadata: Mapping[str, Any]
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Object]:
        """All containers, init containers first."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    def container(self, name: str = "cmail-proxy") -> Object:
        """The container of that name."""
        (found,) = [each for each in self.containers if each["name"] == name]
        return found


def pods(found: Sequence[Object]) -> Iterator[Pod]:
    """Every pod in objects, also those that workloads make."""
    for each in found:
        kind = each["kind"]
        if kind == "Pod":
            yield Pod(each, each["metadata"], each["spec"])
        elif kind in ("Deployment", "StatefulSet", "Job", "DaemonSet"):
            yield Pod(each, each["spec"]["template"]["metadata"], each["spec"]["template"]["spec"])
        elif kind == "CronJob":
            template = each["spec"]["jobTemplate"]["spec"]["template"]
            yield Pod(each, template["metadata"], template["spec"])


def the_pod(found: Sequence[Object], *kinds: str) -> Pod:
    """The only pod of workloads of these kinds; by default of the chart's own two."""
    (pod,) = pods(of_kind(found, *(kinds or ("Deployment", "StatefulSet"))))
    return pod


def settings_of(found: Sequence[Object]) -> Any:
    """The settings file in rendered objects, read."""
    (text,) = [each["data"]["settings.yaml"] for each in of_kind(found, "ConfigMap") if "settings.yaml" in each["data"]]
    return yaml.safe_load(text)


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of an object that is no mapping or list, with where it stands."""
    if isinstance(node, dict):
        for key, each in node.items():
            yield from leaves(each, f"{path}.{key}")
    elif isinstance(node, list):
        for index, each in enumerate(node):
            yield from leaves(each, f"{path}[{index}]")
    else:
        yield path, node


def read(path: Path) -> Any:
    """A YAML file."""
    return yaml.safe_load(path.read_text("utf-8"))


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether labels are what a selector asks for."""
    return selector.items() <= labels.items()

"""Charts and overlays made ready in temporary folders, as their users make them ready."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chart.rendering import CHART, LEGACY_APP, Helm


@contextmanager
def legacy_app(helm: Helm) -> Iterator[Path]:
    """The example with its dependency fetched, in a copy: the checkout stays as it is."""
    with tempfile.TemporaryDirectory(prefix="cmail-proxy-charts-") as name:
        top = Path(name)
        shutil.copytree(CHART, top / "cmail-proxy")
        built = shutil.ignore_patterns("charts", "Chart.lock", "__pycache__")
        example = Path(shutil.copytree(LEGACY_APP, top / "examples" / "legacy-app", ignore=built))
        done = helm.run("dependency", "build", example)
        if done.returncode != 0:
            raise AssertionError(done.stderr)
        yield example


HOST_APP = """\
{{- $scope := . -}}
{{- with .Values.alias }}{{ $scope = index $.Subcharts . }}{{ end }}
apiVersion: v1
kind: Pod
metadata:
  name: app
  labels:
    {{- include "cmail-proxy.podLabels" $scope | nindent 4 }}
  annotations:
    {{- include "cmail-proxy.podAnnotations" $scope | nindent 4 }}
spec:
  {{- with include "cmail-proxy.hostAliases" $scope }}
  hostAliases:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with include "cmail-proxy.podSysctls" $scope }}
  securityContext:
    sysctls:
      {{- . | nindent 6 }}
  {{- end }}
  initContainers:
    {{- include "cmail-proxy.sidecar" $scope | nindent 4 }}
  containers:
    - {name: app, image: "app:1"}
  volumes:
    {{- include "cmail-proxy.sidecarVolumes" $scope | nindent 4 }}
"""
"""A pod as it must be written to get the sidecar, and nothing else."""


@contextmanager
def host_app(helm: Helm, alias: str = "", pod: str = HOST_APP) -> Iterator[Path]:
    """A chart of one pod that includes the sidecar, perhaps under another name."""
    with tempfile.TemporaryDirectory(prefix="cmail-proxy-charts-") as name:
        top = Path(name)
        shutil.copytree(CHART, top / "cmail-proxy")
        chart = top / "app"
        (chart / "templates").mkdir(parents=True)
        named = f", alias: {alias}" if alias else ""
        dependency = f"{{name: cmail-proxy, version: 0.1.0, repository: 'file://../cmail-proxy'{named}}}"
        text = f"apiVersion: v2\nname: app\nversion: 1.0.0\ndependencies: [{dependency}]\n"
        (chart / "Chart.yaml").write_text(text, "utf-8")
        (chart / "values.yaml").write_text(f"alias: {alias}\n" if alias else "{}\n", "utf-8")
        (chart / "templates" / "pod.yaml").write_text(pod, "utf-8")
        done = helm.run("dependency", "build", chart)
        if done.returncode != 0:
            raise AssertionError(done.stderr)
        yield chart

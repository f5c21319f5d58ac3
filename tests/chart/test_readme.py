"""The chart's README: its values render and are taken, its lines work, and its pod gets the sidecar."""

import re
import shlex
from pathlib import Path

import pytest

from tests.chart import kubernetes
from tests.chart.kept import checked
from tests.chart.rendering import CHART, Helm, of_kind, pods, the_pod
from tests.chart.restricted import violations
from tests.chart.sources import host_app
from tests.docs.pages import CHART_README, ROOT, Block, block, blocks


@pytest.mark.parametrize("example", blocks(CHART_README, "yaml", "values"), ids=lambda example: example.id)
def test_values_of_the_readme_give_a_proxy_that_starts(newest: Helm, tmp_path: Path, example: Block) -> None:
    """What is copied from the page is complete: Kubernetes takes the objects, and the program the settings."""
    values = tmp_path / "values.yaml"
    values.write_text(example.text, "utf-8")
    found = newest.render([values])
    assert [problem for each in found for problem in kubernetes.problems(each, kubernetes.OLDEST)] == []
    done = checked(found)
    assert (done.exit_code, done.stdout.startswith("ok: ")) == (0, True), done.output


def test_pod_of_the_readme_has_the_sidecar(newest: Helm, tmp_path: Path) -> None:
    """The lines for values and pod of the app's chart, put together, give a pod that is taken and starts."""
    (fragment,) = [each.text for each in blocks(CHART_README, "yaml", "") if "cmail-proxy.sidecar" in each.text]
    pod = "apiVersion: v1\nkind: Pod\n" + fragment.replace("metadata:\n", "metadata:\n  name: app\n")
    values = tmp_path / "values.yaml"
    values.write_text(block(CHART_README, "yaml", "parent-values"), "utf-8")
    with host_app(newest, pod=pod + "  containers: [{name: app, image: 'app:1'}]\n") as chart:
        found = newest.render([values], chart=chart)
    assert [problem for each in found for problem in kubernetes.problems(each, kubernetes.OLDEST)] == []
    made = the_pod(found, "Pod")
    assert made.spec["initContainers"][0]["restartPolicy"] == "Always"
    assert violations(made, but={"app"}) == []
    assert checked(found).exit_code == 0


def test_commands_of_the_readme_fit_the_chart(newest: Helm) -> None:
    """What is installed by the second line has a test for the third, and the pod whose log is shown."""
    first, second = (each.text for each in blocks(CHART_README, "sh", "commands"))
    lines = [*first.splitlines(), *second.splitlines()]
    assert len(lines) == 4
    install, test, logs = (shlex.split(line) for line in lines[1:])
    assert install[:2] == ["helm", "install"]
    release, chart, *options = install[2:]
    options.remove("--wait")
    assert ROOT / chart == CHART
    found = newest.render((), *options, release=release)
    assert test == ["helm", "test", release, "--logs"]
    assert [pod.owner["metadata"]["annotations"]["helm.sh/hook"] for pod in pods(of_kind(found, "Pod"))] == ["test"]
    assert logs[:3] == ["kubectl", "logs", f"{the_pod(found).owner['metadata']['name']}-0"]
    images = re.findall(r"cmail-proxy:[0-9.]+", lines[0])
    assert set(images) == {each["image"] for pod in pods(found) for each in pod.containers}

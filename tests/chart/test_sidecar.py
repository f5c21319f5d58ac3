"""The sidecar in pods of other charts: by Helm's include, by Kustomize, and by the command; all three are the same."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from proxy.cli import main
from tests.chart import kubernetes
from tests.chart.rendering import CHART, Helm, Object, leaves, objects, of_kind, one, pods, the_pod
from tests.chart.restricted import violations
from tests.chart.sources import host_app, legacy_app
from tests.conftest import require_tool
from tests.docs.pages import ROOT

KUSTOMIZE = ROOT / "charts" / "kustomize" / "sidecar"
SNIPPET_VALUES = CHART / "ci" / "sidecar-snippet-values.yaml"
ALIAS = "post"


@pytest.fixture(scope="module")
def chart(newest: Helm) -> Iterator[Path]:
    """The example, its dependency fetched."""
    with legacy_app(newest) as made:
        yield made


@pytest.fixture(scope="module")
def host(newest: Helm) -> Iterator[Path]:
    """A chart of one pod with the includes."""
    with host_app(newest) as made:
        yield made


def settled(path: Path, **values: Any) -> Path:
    """A values file for a chart that depends on this one, perhaps under another name."""
    given = yaml.safe_load(SNIPPET_VALUES.read_text("utf-8"))
    path.write_text(yaml.safe_dump({name: {**given, **values} for name in ("cmail-proxy", ALIAS)}), "utf-8")
    return path


# The example


def test_example_installs_and_has_the_sidecar_first(each_helm: Helm) -> None:
    """Deployment and job get it before all else, so that the others can send from their start; it holds up no job."""
    with legacy_app(each_helm) as chart:
        done = each_helm.run("lint", "--strict", chart)
        assert done.returncode == 0, done.stdout + done.stderr
        found = each_helm.render(chart=chart)
        for version in (kubernetes.OLDEST, kubernetes.NEWEST):
            assert [problem for each in found for problem in kubernetes.problems(each, version)] == []
        assert [pod.owner["kind"] for pod in pods(found)] == ["Deployment", "CronJob"]
        for pod in pods(found):
            first = pod.spec["initContainers"][0]
            assert (first["name"], first["restartPolicy"]) == ("cmail-proxy", "Always")
            assert [each["name"] for each in pod.spec["containers"]] == ["app"]
            assert violations(pod) == []
            assert pod.spec["automountServiceAccountToken"] is False


def test_example_pods_match_their_selector_and_the_monitor(newest: Helm, chart: Path) -> None:
    """The PodMonitor finds the pods by the label that the include puts on them."""
    found = newest.render((), "--set=cmail-proxy.metrics.podMonitor.enabled=true", chart=chart)
    monitor = one(found, "PodMonitor")["spec"]
    for pod in pods(found):
        assert monitor["selector"]["matchLabels"].items() <= pod.metadata["labels"].items()
        (ports,) = [{each["name"] for each in pod.container()["ports"]}]
        assert {each["port"] for each in monitor["podMetricsEndpoints"]} <= ports
    deployment = one(found, "Deployment")
    assert (
        deployment["spec"]["selector"]["matchLabels"].items() <= the_pod(found, "Deployment").metadata["labels"].items()
    )


def test_example_without_the_proxy_is_the_app_alone(each_helm: Helm) -> None:
    """One switch takes all of it away: nothing in the rendered chart knows of the proxy any more."""
    with legacy_app(each_helm) as chart:
        found = each_helm.render((), "--set=cmail-proxy.enabled=false", chart=chart)
    assert [each["kind"] for each in found] == ["Secret", "ConfigMap", "Deployment", "CronJob"]
    for pod in pods(found):
        assert "initContainers" not in pod.spec
        assert [each["name"] for each in pod.spec["volumes"]] == ["app"]
    assert "cmail-proxy" not in yaml.safe_dump_all(found)


def test_example_restarts_when_settings_of_the_proxy_change(newest: Helm, chart: Path) -> None:
    """The app's pods carry the checksum of its settings."""
    sums = [
        the_pod(newest.render((), f"--set=cmail-proxy.config.limits.recipients={number}", chart=chart), "Deployment")
        .metadata["annotations"]["checksum/settings"]
        for number in (7, 7, 8)
    ]  # fmt: skip
    assert sums[0] == sums[1] != sums[2]


def test_example_shares_its_login_with_the_proxy(newest: Helm, chart: Path) -> None:
    """App and proxy take the old login from one Secret; neither has it in clear."""
    found = newest.render(chart=chart)
    for pod in pods(found):
        names = {
            variable["valueFrom"]["secretKeyRef"]["name"]
            for container in pod.containers
            for variable in container["env"]
            if "USERNAME" in variable["name"] and variable["name"] != "CMAIL_PROXY_RELAY__USERNAME"
        }
        assert names == {"legacy-app-smtp"}
    for each in found:
        if each["kind"] != "Secret":
            assert "the-old-mailgun-password" not in yaml.safe_dump(each)


# The includes


def test_hard_coded_hosts_lead_to_the_sidecar(newest: Helm, host: Path, tmp_path: Path) -> None:
    """With `hostAliases`, and listeners on the ports that the app uses, its pod resolves the old host to itself."""
    config = {
        "relay": {"host": "smtp.example.com"},
        "tls": {"self_signed": True, "names": ["smtp.mailgun.org", "smtp.eu.mailgun.org"]},
        "listeners": [{"address": "127.0.0.1", "port": port, "tls": "starttls"} for port in (587, 25)],
    }
    (pod,) = pods(newest.render([settled(tmp_path / "v.yaml", config=config)], chart=host))
    assert "hostAliases" not in pod.spec
    aliases = {"enabled": True, "names": []}
    found = newest.render([settled(tmp_path / "w.yaml", config=config, hostAliases=aliases)], chart=host)
    assert [problem for each in found for problem in kubernetes.problems(each, kubernetes.OLDEST)] == []
    (pod,) = pods(found)
    assert pod.spec["hostAliases"] == [{"ip": "127.0.0.1", "hostnames": ["smtp.mailgun.org", "smtp.eu.mailgun.org"]}]
    assert pod.spec["securityContext"] == {"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "25"}]}
    aliases = {"enabled": True, "names": ["in-v3.mailjet.com"]}
    (pod,) = pods(newest.render([settled(tmp_path / "x.yaml", config=config, hostAliases=aliases)], chart=host))
    assert pod.spec["hostAliases"] == [{"ip": "127.0.0.1", "hostnames": ["in-v3.mailjet.com"]}]


def test_includes_work_under_another_name(each_helm: Helm, tmp_path: Path) -> None:
    """With an alias, the scope of the dependency is handed in, and all is as with its own name."""
    path = settled(tmp_path / "values.yaml")
    with host_app(each_helm) as plain, host_app(each_helm, alias=ALIAS) as renamed:
        plain_pod, renamed_pod = (one(each_helm.render([path], chart=chart), "Pod") for chart in (plain, renamed))
    assert plain_pod == renamed_pod


def test_include_says_what_is_missing(each_helm: Helm, tmp_path: Path) -> None:
    """In a scope without the dependency, or in another mode, the message says so, and what to do."""
    values = settled(tmp_path / "values.yaml")
    with host_app(each_helm, alias=ALIAS) as chart:
        done = each_helm.template([values], "--set=alias=", chart=chart)
        assert done.returncode != 0
        assert (
            "cmail-proxy.podLabels: this scope has no dependency cmail-proxy. Is it in Chart.yaml, and enabled? "
            'With an alias, hand in (index .Subcharts "ALIAS").'
        ) in done.stderr
    with host_app(each_helm) as chart:
        done = each_helm.template([values], "--set=cmail-proxy.mode=gateway", chart=chart)
        assert done.returncode != 0
        assert "cmail-proxy.podLabels: mode is gateway; for a sidecar, set cmail-proxy.mode: sidecar" in done.stderr
        done = each_helm.template([settled(tmp_path / "other.yaml", config={})], chart=chart)
        assert done.returncode != 0
        assert (
            "config.relay.host: nothing; mode sidecar needs the platform's SMTP host, or set mode: core" in done.stderr
        )


# Kustomize and the command


def snippet(*arguments: str) -> str:
    """What the command writes."""
    done = CliRunner().invoke(main, ["sidecar-snippet", *arguments])
    assert done.exit_code == 0, done.output
    return str(done.stdout)


@pytest.fixture(scope="module")
def overlaid(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """A Deployment and a CronJob's worth of an app's manifests, with the component; one workload is not asked for."""
    folder = tmp_path_factory.mktemp("overlay")
    shutil.copytree(KUSTOMIZE, folder / "sidecar")
    overlay = folder / "app"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        "resources: [app.yaml]\ncomponents: [../sidecar]\nnamespace: mail\n", "utf-8"
    )
    template: dict[str, Any] = {
        "metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
    }
    injected = {"cmail-proxy/inject": "yes"}
    app: list[Object] = [
        {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "labels": labels},
         "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template, **more}}
        for kind, name, labels, more in (
            ("Deployment", "app", injected, {}),
            ("StatefulSet", "store", injected, {"serviceName": "store"}),
            ("Deployment", "other", {}, {}),
        )
    ]  # fmt: skip
    job = {**template, "spec": {**template["spec"], "restartPolicy": "Never"}}
    metadata = {"name": "nightly", "labels": injected}
    app.append({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": job}})
    (overlay / "app.yaml").write_text(yaml.safe_dump_all(app), "utf-8")
    line = [require_tool("kustomize"), "build", str(overlay)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return objects(done.stdout)


def test_component_gives_every_workload_that_asks_the_sidecar_of_the_chart(
    newest: Helm, host: Path, tmp_path: Path, overlaid: list[Object]
) -> None:
    """Container, volumes and label are those of the chart's include, and the settings say the same."""
    rendered = newest.render([settled(tmp_path / "values.yaml")], chart=host)
    (expected,) = pods(rendered)
    assert [problem for each in overlaid for problem in kubernetes.problems(each, kubernetes.OLDEST)] == []
    (generated,) = of_kind(overlaid, "ConfigMap")
    found = {(pod.owner["kind"], pod.owner["metadata"]["name"]): pod for pod in pods(overlaid)}
    assert len(found) == 4
    other = found.pop(("Deployment", "other"))
    assert set(other.spec) == {"containers"}
    for pod in found.values():
        assert pod.spec["initContainers"] == expected.spec["initContainers"]
        named = {"name": generated["metadata"]["name"]}  # with a hash of its content: a change restarts the pods
        volumes = [
            {**each, "configMap": {**each["configMap"], **named}} if "configMap" in each else each
            for each in expected.spec["volumes"]
        ]
        assert pod.spec["volumes"] == volumes
        assert expected.metadata["labels"].items() <= pod.metadata["labels"].items()
        assert [each["name"] for each in pod.spec["containers"]] == ["app"]
    (settings,) = of_kind(rendered, "ConfigMap")
    assert yaml.safe_load(generated["data"]["settings.yaml"]) == yaml.safe_load(settings["data"]["settings.yaml"])


def test_snippet_of_the_command_is_the_sidecar_of_the_chart(newest: Helm, host: Path, tmp_path: Path) -> None:
    """The command writes a patch with the chart's container, volumes and label, and settings as the chart's."""
    rendered = newest.render([settled(tmp_path / "values.yaml")], chart=host)
    (expected,) = pods(rendered)
    (patch,) = objects(snippet())
    pod = the_pod([patch])
    assert pod.spec == {key: expected.spec[key] for key in ("initContainers", "volumes")}
    assert pod.metadata["labels"] == expected.metadata["labels"]
    (settings,) = of_kind(rendered, "ConfigMap")
    assert settings["metadata"]["name"] == "cmail-proxy-settings"
    assert yaml.safe_load(snippet("--settings")) == yaml.safe_load(settings["data"]["settings.yaml"])
    other = "registry.example.com/mail/cmail-proxy:9"
    (patch,) = objects(snippet("--image", other))
    assert [value for path, value in leaves(patch) if path.endswith(".image")] == [other]


def test_steps_in_the_snippet_make_what_it_needs() -> None:
    """The commands in its comment name the ConfigMap, Secrets and keys that the patch refers to."""
    text = snippet()
    (patch,) = objects(text)
    comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    wanted = {
        value for path, value in leaves(patch) if path.endswith(("configMap.name", "secret.name", "secretKeyRef.name"))
    }
    assert wanted == {"cmail-proxy-settings", "cmail-proxy-platform", "cmail-proxy-login"}
    for name in wanted:
        assert f" {name} --from-" in comment
    keys = {value for path, value in leaves(patch) if path.endswith(("secretKeyRef.key", "items[0].key"))}
    assert keys == {"username", "password"}
    for key in keys:
        assert comment.count(f"--from-literal={key}=") == 2
    assert "--from-file=settings.yaml" in comment

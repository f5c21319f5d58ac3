"""What the chart renders for every values file, by both helms: objects that Kubernetes takes, pods that may little."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.chart import kubernetes
from tests.chart.kept import checked
from tests.chart.rendering import (
    CHART,
    HELMS,
    OLDEST_KUBERNETES,
    RELEASE,
    VALUES,
    Helm,
    Object,
    every,
    helm,
    leaves,
    matches,
    of_kind,
    one,
    pods,
    read,
    settings_of,
    the_pod,
    with_pods,
)
from tests.chart.sources import host_app

LONGEST_RELEASE = "r" + "elease" * 8 + "-end"
"""As long as helm takes: 53 characters."""

# What Kubernetes takes


@every
def test_values_lint_without_a_remark(each_helm: Helm, values: Path) -> None:
    """No error and no warning."""
    done = each_helm.run("lint", "--strict", CHART, f"--values={values}", f"--kube-version={OLDEST_KUBERNETES}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout + done.stderr


@every
def test_objects_are_valid_in_the_oldest_and_newest_kubernetes(each_helm: Helm, values: Path) -> None:
    """Every field is one that the API server knows, in every version from 1.29 on."""
    found = each_helm.render([values])
    assert found
    wrong = [
        problem
        for version in (kubernetes.OLDEST, kubernetes.NEWEST)
        for each in found
        for problem in kubernetes.problems(each, version)
    ]
    assert wrong == []


def test_supported_versions_begin_where_sidecars_do() -> None:
    """The chart says from which version on, and that one is tested; a newer one is at hand, too."""
    assert read(CHART / "Chart.yaml")["kubeVersion"] == f">={OLDEST_KUBERNETES}-0"
    assert kubernetes.OLDEST == OLDEST_KUBERNETES
    assert kubernetes.NEWEST != kubernetes.OLDEST


def test_older_kubernetes_is_refused(each_helm: Helm) -> None:
    """Where an init container could not go on beside the app, nothing is installed."""
    done = each_helm.template([VALUES[0]], kubernetes="1.28.9")
    assert done.returncode != 0
    assert "chart requires kubeVersion: >=1.29.0-0 which is incompatible with Kubernetes v1.28.9" in done.stderr


@pytest.mark.parametrize("version", [kubernetes.OLDEST, kubernetes.NEWEST])
def test_misspelt_field_is_noticed(newest: Helm, version: str) -> None:
    """The schemas are strict, at every depth and for the monitoring kinds, or what passes would prove nothing."""
    found = copy.deepcopy(newest.render([CHART / "ci" / "gateway-everything-values.yaml"]))
    deployment = one(found, "Deployment")
    assert kubernetes.problems(deployment, version) == []
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["readinesProbe"] = container.pop("readinessProbe")
    (problem,) = kubernetes.problems(deployment, version)
    assert "'readinesProbe' was unexpected" in problem
    monitor = one(found, "ServiceMonitor")
    monitor["spec"]["endpoints"][0]["intervall"] = "1s"
    (problem,) = kubernetes.problems(monitor, version)
    assert "'intervall' was unexpected" in problem
    service = one(found, "Service", "shop-mail")
    service["spec"]["externalTrafficPolicy"] = None
    assert kubernetes.problems(service, version) == ["Service shop-mail, $.spec.externalTrafficPolicy: nothing"]


@every
def test_both_helms_give_the_same(values: Path) -> None:
    """Whoever has not changed to helm 4 gets the same objects; only a token is made anew each time."""
    first, second = (by_name(helm(name).render([values])) for name in HELMS)
    assert first == second


def by_name(found: list[Object]) -> dict[tuple[str, str], Object]:
    """Objects by kind and name, without tokens."""
    copied = copy.deepcopy(found)
    for each in of_kind(copied, "Secret"):
        if each["metadata"]["name"].endswith("-token"):
            each["data"]["token"] = ""
    named = {(each["kind"], each["metadata"]["name"]): each for each in copied}
    assert len(named) == len(copied), "an object twice"
    return named


def test_every_template_is_used_by_some_values(newest: Helm) -> None:
    """Every kind that the chart can make is in what was checked above."""
    text = "".join(path.read_text("utf-8") for path in (CHART / "templates").rglob("*.yaml"))
    kinds = {each["kind"] for values in VALUES for each in newest.render([values])}
    claims = {"PersistentVolumeClaim"}  # inside the StatefulSet
    assert set(re.findall(r"^ *kind: (\w+)$", text, re.MULTILINE)) - claims == kinds


# Names


@every
def test_names_fit_with_the_longest_release(newest: Helm, values: Path) -> None:
    """All names are names, no longer than the shortest limit, which is that of labels and Services."""
    assert len(LONGEST_RELEASE) == 53
    for release in (RELEASE, LONGEST_RELEASE):
        for each in newest.render([values], release=release):
            name = each["metadata"]["name"]
            assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name), name
            for path, label in [*leaves(each["metadata"].get("labels", {})), *leaves(each.get("spec", {}))]:
                if path.startswith((".app.kubernetes.io", ".helm.sh", ".cmail-proxy")) or "matchLabels" in path:
                    assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", label), (path, label)


@with_pods
def test_names_that_objects_refer_to_exist(newest: Helm, values: Path) -> None:
    """ConfigMaps, Secrets, Services and accounts that are named are rendered, or named in the values."""
    given = {str(value) for _, value in leaves(read(values))}
    found = newest.render([values], release=LONGEST_RELEASE)
    there = {(each["kind"], each["metadata"]["name"]) for each in found}
    for kind, name in references(found):
        assert (kind, name) in there or name in given or (kind, name) == ("ServiceAccount", "default"), (kind, name)


def references(found: list[Object]) -> Iterator[tuple[str, str]]:
    """Kind and name of everything that objects refer to."""
    for each in found:
        for path, value in leaves(each):
            if re.search(r"\.(configMap|configMapRef|configMapKeyRef)\.name$", path):
                yield "ConfigMap", value
            elif re.search(r"\.(secret|secretRef|secretKeyRef)\.name$|\.secretName$", path):
                yield "Secret", value
            elif re.search(r"\.serviceAccountName$", path):
                yield "ServiceAccount", value
            elif re.search(r"\.serviceName$|\.backend\.service\.name$", path):
                yield "Service", value
            elif re.search(r"\.scaleTargetRef\.name$", path):
                yield each["spec"]["scaleTargetRef"]["kind"], value


@with_pods
def test_selectors_match_the_pods_of_the_proxy_and_no_others(newest: Helm, values: Path) -> None:
    """
    Services, budget, policy, spread and monitors find the pods that serve; the pod of ``helm test`` is none of them, or
    mail would be sent to it, and the policy would keep it from the proxy.
    """
    found = newest.render([values])
    workload = the_pod(found)
    others = [each for each in pods(found) if each.owner["kind"] == "Pod"]
    selectors = list(_selectors(found))
    kinds = {kind for kind, _ in selectors}
    assert {"Service", workload.owner["kind"]} <= kinds
    for kind, selector in selectors:
        for other in others:
            assert not matches(selector, other.metadata["labels"]), kind
        labels = workload.metadata["labels"]
        if kind == "ServiceMonitor":
            (labels,) = [
                each["metadata"]["labels"]
                for each in of_kind(found, "Service")
                if matches(selector, each["metadata"]["labels"])
            ]
        assert matches(selector, labels), (kind, selector)


def _selectors(found: list[Object]) -> Iterator[tuple[str, dict[str, str]]]:
    for each in found:
        spec, kind = each.get("spec", {}), each["kind"]
        if kind == "Service":
            yield kind, spec["selector"]
        elif kind == "NetworkPolicy":
            yield kind, spec["podSelector"]["matchLabels"]
        elif "selector" in spec:
            yield kind, spec["selector"]["matchLabels"]
        for constraint in spec.get("template", {}).get("spec", {}).get("topologySpreadConstraints", ()):
            yield "spread", constraint["labelSelector"]["matchLabels"]


@with_pods
def test_labels_and_annotations_of_the_values_are_on_every_object(newest: Helm, tmp_path: Path, values: Path) -> None:
    """`commonLabels` and `commonAnnotations` are on all of them, and every object says to which release it belongs."""
    own = tmp_path / "own.yaml"
    own.write_text('{"commonLabels": {"team": "mail"}, "commonAnnotations": {"contact": "mail-team"}}', "utf-8")
    for each in newest.render([values, own]):
        metadata = each["metadata"]
        assert metadata["labels"]["team"] == "mail", metadata["name"]
        assert metadata["annotations"]["contact"] == "mail-team", metadata["name"]
        assert metadata["labels"]["app.kubernetes.io/instance"] == RELEASE
        assert metadata["namespace"] == "mail"


# Settings


@every
def test_settings_are_taken_by_the_program(newest: Helm, tmp_path: Path, values: Path) -> None:
    """
    What is rendered passes ``cmail-proxy check`` without a warning about itself, with all that the pod mounts and its
    variables; rule files are loaded, keys and certificates read.
    """
    found = newest.render([values])
    if "sidecar" in values.name:  # no pod of its own, so as part of an app
        with host_app(newest) as chart:
            found = newest.render([as_dependency(values, tmp_path)], chart=chart)
    done = checked(found)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("ok: ")
    for provider in read(values).get("extraMappings", {}):
        assert f" {provider}" in done.stdout.partition("; listening")[0]
    assert [line for line in done.stderr.splitlines() if "rules.when_absent: platform" not in line] == []


def as_dependency(values: Path, home: Path) -> Path:
    """A values file of the chart as values of a chart that depends on it."""
    path = home / "values.yaml"
    path.write_text(yaml.safe_dump({"cmail-proxy": read(values)}), "utf-8")
    return path


def checksum(found: list[Object]) -> str:
    """What makes pods restart."""
    return str(the_pod(found).metadata["annotations"]["checksum/settings"])


def test_checksum_changes_with_settings_and_not_with_rules(newest: Helm) -> None:
    """Pods restart for what needs a restart, and for nothing else."""
    values = CHART / "ci" / "gateway-everything-values.yaml"
    before = newest.render([values])
    for option in (
        "config.limits.recipients=7",
        "config.log.level=info",
        "credentials.relay.username=a,credentials.relay.password=b",
    ):
        assert checksum(newest.render([values], f"--set={option}")) != checksum(before), option
    for option in ("extraMappings.acme=title: Other", "replicaCount=7", "commonLabels.a=b"):
        after = newest.render([values], f"--set={option}")
        assert checksum(after) == checksum(before), option
        assert after != before, option


def test_settings_of_the_values_win_over_those_of_the_mode(newest: Helm) -> None:
    """What is said under `config` stands in the file as it was said; the rest is the mode's."""
    found = newest.render([CHART / "ci" / "gateway-everything-values.yaml"])
    settings, given = settings_of(found), read(CHART / "ci" / "gateway-everything-values.yaml")["config"]
    for key in ("workers", "log", "listeners", "relay", "shutdown", "tls"):
        assert settings[key] == given[key], key
    assert settings["http"] == {"probes": {"address": "::", "port": 9025}}
    assert settings["rules"]["providers"] == ["mailgun", "mailjet", "mandrill", "postmark", "sendgrid", "acme"]


def test_rules_are_in_a_config_map_of_their_own(newest: Helm) -> None:
    """Own files and those of an existing ConfigMap are mounted together; each text is what the values say."""
    values = CHART / "ci" / "gateway-everything-values.yaml"
    found = newest.render([values])
    assert one(found, "ConfigMap", "shop-mail-rules")["data"] == {
        f"{name}.yaml": text for name, text in read(values)["extraMappings"].items()
    }
    (volume,) = [each for each in the_pod(found).spec["volumes"] if each["name"] == "cmail-proxy-rules"]
    names = [each["configMap"]["name"] for each in volume["projected"]["sources"]]
    assert names == ["company-mappings", "shop-mail-rules"]


# Modes


@pytest.mark.parametrize("values", [path for path in VALUES if "sidecar" in path.name], ids=lambda path: path.name)
def test_sidecar_has_no_pods_of_its_own(newest: Helm, values: Path) -> None:
    """Settings, Secrets and monitoring, and nothing that runs or is called."""
    found = newest.render([values])
    assert {each["kind"] for each in found} <= {"ConfigMap", "Secret", "PodMonitor"}
    assert list(pods(found)) == []


@pytest.mark.parametrize(("mode", "kind"), [("gateway", "Deployment"), ("core", "StatefulSet")])
def test_mode_has_its_workload(newest: Helm, mode: str, kind: str) -> None:
    """A gateway may be many, the core has one pod and a claim."""
    found = newest.render([CHART / "ci" / f"{mode}-values.yaml"])
    assert [each["kind"] for each in of_kind(found, "Deployment", "StatefulSet", "DaemonSet", "Job")] == [kind]
    workload = one(found, kind)
    assert workload["spec"]["replicas"] == {"gateway": 2, "core": 1}[mode]
    assert bool(workload["spec"].get("volumeClaimTemplates")) == (mode == "core")


def test_autoscaler_alone_says_how_many_pods_there_are(newest: Helm) -> None:
    """With it, the Deployment names no number that each upgrade would go back to."""
    found = newest.render([CHART / "ci" / "gateway-everything-values.yaml"])
    assert "replicas" not in one(found, "Deployment")["spec"]
    scaler = one(found, "HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 20)


def test_volume_of_the_core_is_chosen_by_the_values(newest: Helm) -> None:
    """A claim of its own, one that is there, or none."""
    kinds = {}
    for name in ("core-values", "core-mx-values", "core-ephemeral-values"):
        found = newest.render([CHART / "ci" / f"{name}.yaml"])
        claims = one(found, "StatefulSet")["spec"].get("volumeClaimTemplates", ())
        data = [each for each in the_pod(found).spec["volumes"] if each["name"] == "cmail-proxy-data"]
        kinds[name] = [each["spec"]["resources"]["requests"]["storage"] for each in claims] + data
    assert kinds == {
        "core-values": ["8Gi"],
        "core-mx-values": [{"name": "cmail-proxy-data", "persistentVolumeClaim": {"claimName": "queue"}}],
        "core-ephemeral-values": [{"name": "cmail-proxy-data", "emptyDir": {}}],
    }


# Only by helm 4: a dry run of helm 3 asks a cluster.
def test_notes_name_the_first_steps(newest: Helm) -> None:
    """Whoever has just installed it is told where to send, with what, and how to try it."""
    for mode in ("gateway", "core", "sidecar"):
        values = CHART / "ci" / f"{mode}-values.yaml"
        done = newest.run("install", RELEASE, CHART, "--dry-run=client", "--namespace=mail", f"--values={values}")
        assert done.returncode == 0, done.stderr
        notes = done.stdout.partition("NOTES:\n")[2]
        assert f"is installed in mode {mode}." in notes
        assert ("helm test shop --namespace mail --logs" in notes) == (mode != "sidecar")
        assert ("kubectl get secret shop-cmail-proxy-token --namespace mail" in notes) == (mode != "sidecar")


def test_notes_name_a_way_to_send_where_helm_test_has_none(newest: Helm, tmp_path: Path) -> None:
    """Without a token there is no test pod; the command given instead uses what the container has."""
    logins = "{logins: [{name: shop, existingSecret: old, usernameKey: user}]}"
    for credentials, ending in {
        logins: " --username USER --password-file /etc/cmail-proxy/secrets/login-0",
        "{generateToken: false}": "",
    }.items():
        values = tmp_path / "values.yaml"
        values.write_text(f"config: {{relay: {{host: smtp.example.com}}}}\ncredentials: {credentials}\n")
        done = newest.run("install", RELEASE, CHART, "--dry-run=client", f"--values={values}")
        assert done.returncode == 0, done.stderr
        assert "helm test shop" not in done.stdout
        line = "cmail-proxy send-test --server 127.0.0.1:2525 --from YOU --to YOU"
        assert f"deployment/shop-cmail-proxy --container cmail-proxy -- {line}{ending}\n" in done.stdout
        assert not of_kind(newest.render([values]), "Pod")


def test_alerts_are_those_of_the_file_but_for_the_ones_left_out(newest: Helm) -> None:
    """With the labels of the values on each of them, and own rules in a group of their own."""
    shipped = {
        alert["alert"]: alert for group in read(CHART / "files" / "alerts.yaml")["groups"] for alert in group["rules"]
    }
    found = newest.render([CHART / "ci" / "gateway-everything-values.yaml"])
    groups = one(found, "PrometheusRule")["spec"]["groups"]
    *ours, extra = groups
    assert extra["rules"] == [
        {"alert": "TooQuiet", "expr": "sum(rate(cmail_proxy_messages_received_total[1h])) == 0", "for": "1h"}
    ]
    rendered = {alert["alert"]: alert for group in ours for alert in group["rules"]}
    assert set(shipped) - set(rendered) == {"CmailProxyUntranslatableSeen"}
    for name, alert in rendered.items():
        assert alert == {**shipped[name], "labels": {**shipped[name].get("labels", {}), "team": "mail"}}


def test_dashboard_is_that_of_the_file(newest: Helm) -> None:
    """Grafana's loader finds one file in it, by the labels of the values."""
    found = newest.render([CHART / "ci" / "gateway-everything-values.yaml"])
    dashboard = one(found, "ConfigMap", "shop-mail-dashboard")
    assert dashboard["metadata"]["labels"]["dashboards"] == "mail"
    assert dashboard["metadata"]["annotations"]["grafana_folder"] == "Mail"
    ((name, text),) = dashboard["data"].items()
    assert name == "cmail-proxy.json"
    assert json.loads(text) == json.loads((CHART / "files" / "dashboard.json").read_text("utf-8"))

"""What the chart renders for every values file, by both helms: objects that Kubernetes takes, pods that may little."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart import kubernetes
from tests.chart.kept import checked
from tests.chart.kubelet import content
from tests.chart.rendering import (
    CHART,
    HELMS,
    NEWEST,
    OLDEST_KUBERNETES,
    RELEASE,
    VALUES,
    Helm,
    Object,
    Pod,
    helm,
    leaves,
    objects,
    of_kind,
    one,
    pods,
    settings_of,
    the_pod,
)
from tests.chart.restricted import violations
from tests.chart.sources import host_app, legacy_app

LONGEST_RELEASE = "r" + "elease" * 8 + "-end"
"""As long as helm takes: 53 characters."""

every = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.name.removesuffix("-values.yaml"))
with_pods = pytest.mark.parametrize(
    "values",
    [path for path in VALUES if not path.name.startswith("sidecar")],
    ids=lambda path: path.name.removesuffix("-values.yaml"),
)


@pytest.fixture(params=HELMS)
def each_helm(request: pytest.FixtureRequest) -> Helm:
    """One helm after the other."""
    return helm(request.param)


@pytest.fixture(scope="module")
def newest() -> Helm:
    """The newest helm, where both do the same."""
    return helm(NEWEST)


@pytest.fixture(scope="module")
def app(newest: Helm) -> Iterator[list[Object]]:
    """The example with its sidecar."""
    with legacy_app(newest) as chart:
        yield newest.render(chart=chart)


def read(path: Path) -> Any:
    """A YAML file."""
    return yaml.safe_load(path.read_text("utf-8"))


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
            assert not _matches(selector, other.metadata["labels"]), kind
        labels = workload.metadata["labels"]
        if kind == "ServiceMonitor":
            (labels,) = [
                each["metadata"]["labels"]
                for each in of_kind(found, "Service")
                if _matches(selector, each["metadata"]["labels"])
            ]
        assert _matches(selector, labels), (kind, selector)


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


def _matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


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


# What pods may, and what they have


@with_pods
def test_pods_keep_the_restricted_standard(newest: Helm, values: Path) -> None:
    """Every pod passes the strictest of the pod security standards, and its root is read-only."""
    given = {each["name"] for each in read(values).get("extraContainers", ())}
    for pod in pods(newest.render([values])):
        assert violations(pod, but=given) == []


@with_pods
def test_pods_get_no_token_of_the_cluster(newest: Helm, values: Path) -> None:
    """Neither the pods nor their account mount one: the proxy never asks the API server."""
    found = newest.render([values])
    assert len(list(pods(found))) >= 1
    for pod in pods(found):
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["enableServiceLinks"] is False
    for account in of_kind(found, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def proxies(found: list[Object]) -> list[tuple[Pod, Object]]:
    """Each container of the proxy, with its pod."""
    return [(pod, each) for pod in pods(found) for each in pod.containers if each["name"] == "cmail-proxy"]


@with_pods
def test_probes_are_apart_and_on_the_probes_port(newest: Helm, values: Path) -> None:
    """Start-up, readiness and liveness each ask for their own page, of the one port that kubelet reaches."""
    assert_probes(newest.render([values]))


def test_probes_of_the_sidecar_are_the_same(app: list[Object]) -> None:
    """The sidecar is probed as the others are: it holds up the app until it can send."""
    assert_probes(app)


def assert_probes(found: list[Object]) -> None:
    """Three probes, by the name of a port that is there."""
    assert proxies(found)
    for _, container in proxies(found):
        pages = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
        assert pages == {
            "startupProbe": {"path": "/startupz", "port": "probes"},
            "readinessProbe": {"path": "/readyz", "port": "probes"},
            "livenessProbe": {"path": "/livez", "port": "probes"},
        }
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        assert ports["probes"] == settings_of(found)["http"]["probes"]["port"]
        assert len(set(ports.values())) == len(container["ports"])


@with_pods
def test_pod_has_more_time_to_end_than_the_proxy_takes(newest: Helm, values: Path) -> None:
    """Kubelet kills nobody who still drains."""
    found = newest.render([values])
    shutdown = settings_of(found)["shutdown"]
    grace = the_pod(found).spec["terminationGracePeriodSeconds"]
    assert grace > shutdown["delay_seconds"] + shutdown["drain_seconds"]


def test_pod_of_the_example_has_time_for_the_sidecar(app: list[Object]) -> None:
    """Also where the app sets the time."""
    shutdown = settings_of(app)["shutdown"]
    for pod in pods(app):
        assert pod.spec["terminationGracePeriodSeconds"] > shutdown["delay_seconds"] + shutdown["drain_seconds"]


def test_grace_period_may_be_given_and_follows_the_settings(newest: Helm) -> None:
    """What is given stands; else it grows with delay and drain."""
    values = CHART / "ci" / "gateway-values.yaml"
    for option, expected in (
        ("terminationGracePeriodSeconds=99", 99),
        ("config.shutdown.drain_seconds=300", 320),
        ("config.shutdown.delay_seconds=0", 45),
    ):
        found = newest.render([values], f"--set={option}")
        assert the_pod(found).spec["terminationGracePeriodSeconds"] == expected


@every
def test_no_volume_is_mounted_in_part(newest: Helm, values: Path) -> None:
    """With subPath a change of the ConfigMap would never reach the pod."""
    assert not [path for each in newest.render([values]) for path, _ in leaves(each) if "subPath" in path]


@with_pods
def test_every_mount_has_its_volume_and_every_volume_its_mount(newest: Helm, values: Path) -> None:
    """None is left over, and none is missing; only the data folder may be written to."""
    for pod in pods(newest.render([values])):
        claims = pod.owner["spec"].get("volumeClaimTemplates", ())
        volumes = {each["name"] for each in pod.spec["volumes"]} | {each["metadata"]["name"] for each in claims}
        mounts = [mount for container in pod.containers for mount in container.get("volumeMounts", ())]
        assert {each["name"] for each in mounts} == volumes
        assert len(volumes) == len(pod.spec["volumes"]) + len(claims)
        assert {each["name"] for each in mounts if not each.get("readOnly")} <= {"cmail-proxy-data"}


@every
def test_secrets_of_the_values_are_in_secrets_alone(newest: Helm, values: Path) -> None:
    """What was written into the values as a secret stands in a Secret, and in nothing else, not even encoded."""
    found = newest.render([values])
    credentials = read(values).get("credentials", {})
    given = {value for path, value in leaves(credentials) if re.search(r"\.(username|password|token)$", path)}
    held = {value.decode() for each in of_kind(found, "Secret") for value in content(each).values()}
    assert given <= held
    for each in found:
        if each["kind"] != "Secret":
            text = yaml.safe_dump(each, width=10_000)
            assert not [secret for secret in held if secret in text]


def test_a_token_is_made_where_nobody_else_may_send(newest: Helm) -> None:
    """Long, another one each time, and no longer made where somebody is named or it was switched off."""
    values = CHART / "ci" / "gateway-values.yaml"
    found = newest.render([values])
    token = content(one(found, "Secret", "shop-cmail-proxy-token"))["token"].decode()
    assert re.fullmatch(r"[A-Za-z0-9]{40}", token)
    assert token != content(one(objects(newest.template([values]).stdout), "Secret"))["token"].decode()
    for option in (
        "credentials.tokens[0].name=app,credentials.tokens[0].existingSecret=app",
        "credentials.generateToken=false",
        "config.listeners[0].auth=none,config.listeners[0].port=2525",
    ):
        assert of_kind(newest.render([values], f"--set={option}"), "Secret") == []


# Ports


@with_pods
def test_ports_are_the_same_everywhere(newest: Helm, values: Path) -> None:
    """
    Settings, container, Services and policy agree: what listens has a port, what a Service leads to listens, and the
    policy lets in to each port of the container, the probes port on its own.
    """
    found = newest.render([values])
    ((_, container),) = [each for each in proxies(found) if each[0].owner["kind"] != "Pod"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    settings = settings_of(found)
    listening = [each["port"] for each in settings["listeners"]] + [each["port"] for each in settings["http"].values()]
    assert sorted(ports.values()) == sorted(listening)
    for service in of_kind(found, "Service"):
        for each in service["spec"]["ports"]:
            assert each["targetPort"] in ports or each["targetPort"] in ports.values()
            if each["targetPort"] in ("probes", ports["probes"]):
                assert service["metadata"]["name"].endswith("-metrics")
    for policy in of_kind(found, "NetworkPolicy"):
        admitted = [[port["port"] for port in rule["ports"]] for rule in policy["spec"]["ingress"]]
        assert sorted(name for names in admitted for name in names) == sorted(ports)
        assert ["probes"] in admitted


@with_pods
def test_sysctl_is_there_exactly_for_low_ports(newest: Helm, values: Path) -> None:
    """A port below 1024 needs it without root; nobody else gets it."""
    found = newest.render([values])
    lowest = min(each["port"] for each in settings_of(found)["listeners"])
    sysctls = the_pod(found).spec["securityContext"].get("sysctls", [])
    low = [{"name": "net.ipv4.ip_unprivileged_port_start", "value": str(lowest)}]
    assert sysctls == (low if lowest < 1024 else [])


def test_some_values_have_low_ports() -> None:
    """The test above sees both."""
    lists = [read(path).get("config", {}).get("listeners", ()) for path in VALUES]
    assert {min(each["port"] for each in listeners) < 1024 for listeners in lists if listeners} == {True, False}


@with_pods
def test_policy_lets_out_to_where_mail_goes(newest: Helm, values: Path) -> None:
    """DNS, and the port of the platform, the smarthost or the mail hosts; nothing where it is not restricted."""
    found = newest.render([values])
    settings = settings_of(found)
    deliver = settings.get("deliver", {})
    onward = {
        "relay": settings.get("relay", {}).get("port", 587),
        "smarthost": deliver.get("smarthost", {}).get("port", 587),
        "mx": 25,
        "mailbox": None,
    }[settings["route"] if settings["route"] == "relay" else deliver.get("via", "mailbox")]
    for policy in of_kind(found, "NetworkPolicy"):
        spec = policy["spec"]
        if "Egress" not in spec["policyTypes"]:
            assert "egress" not in spec
            continue
        ports = {port["port"] for rule in spec["egress"] for port in rule.get("ports", ())}
        assert ports == {53, onward} - {None}


def test_policy_lets_the_test_pod_in(newest: Helm) -> None:
    """Whoever may send else, `helm test` may."""
    found = newest.render([CHART / "ci" / "gateway-everything-values.yaml"], "--set=credentials.tokens[0].name=a",
                          "--set=credentials.tokens[0].token=t")  # fmt: skip
    (pod,) = [each for each in pods(found) if each.owner["kind"] == "Pod"]
    senders = one(found, "NetworkPolicy")["spec"]["ingress"][0]["from"]
    assert [
        each
        for each in senders
        if _matches(each.get("podSelector", {}).get("matchLabels", {"-": ""}), pod.metadata["labels"])
    ]


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


@pytest.mark.parametrize(("listener", "tls"), [("starttls", "auto"), ("auto", "auto"), ("implicit", "implicit")])
def test_test_pod_speaks_as_its_port_does(newest: Helm, listener: str, tls: str) -> None:
    """`helm test` goes to the first port of the Service, and begins with TLS where that wants it."""
    options = f"config.listeners[0].address=0.0.0.0,config.listeners[0].port=2465,config.listeners[0].tls={listener}"
    found = newest.render([CHART / "ci" / "gateway-values.yaml"], f"--set={options}")
    arguments = the_pod(found, "Pod").container("send")["args"]
    assert [each for each in arguments if each.startswith(("--server=", "--tls="))] == [
        "--server=shop-cmail-proxy:2465",
        f"--tls={tls}",
    ]


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

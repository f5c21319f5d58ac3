"""Pods and ports of what the chart renders: pods may little, are probed, have time to end; ports agree everywhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.chart.kubelet import content
from tests.chart.rendering import (
    CHART,
    VALUES,
    Helm,
    Object,
    Pod,
    every,
    leaves,
    matches,
    objects,
    of_kind,
    one,
    pods,
    read,
    settings_of,
    the_pod,
    with_pods,
)
from tests.chart.restricted import violations
from tests.chart.sources import legacy_app


@pytest.fixture(scope="module")
def app(newest: Helm) -> Iterator[list[Object]]:
    """The example with its sidecar."""
    with legacy_app(newest) as chart:
        yield newest.render(chart=chart)


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


def test_listeners_without_an_address_are_reached_by_the_service(newest: Helm) -> None:
    """The program's own default is its loopback, on which a pod would be ready and refuse every connection."""
    for address in ("0.0.0.0", "::"):  # noqa: S104 - only rendered
        options = f"listenAddress={address},config.listeners[0].port=587,config.listeners[1].port=465"
        found = newest.render([CHART / "ci" / "gateway-values.yaml"], f"--set={options}")
        assert [each["address"] for each in settings_of(found)["listeners"]] == [address, address]


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
        if matches(each.get("podSelector", {}).get("matchLabels", {"-": ""}), pod.metadata["labels"])
    ]


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

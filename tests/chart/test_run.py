"""
The rendered chart is run: gateway, sidecar beside the app of the example, and core, each from start to end.

One test for each mode tells a pod's whole life, because a start costs more than all that happens in between. What is
otherwise here than in a cluster is told in ``kubelet``.
"""

import contextlib
import email
import email.policy
import json
import smtplib
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trustme
from attrs import frozen

from tests.chart.kubelet import Container, RunningPod, address, config_map, content, folder, secret
from tests.chart.rendering import CHART, Object, Pod, helm, of_kind, one, pods, the_pod
from tests.chart.sources import legacy_app
from tests.deliver.site import Copy
from tests.fixtures.cases import CASES, FIVE, Case
from tests.operation.program import eventually
from tests.smtp_in.dialogue import plain, trusting
from tests.support.proxy_process import WAIT_SECONDS
from tests.support.upstream import EXTENSIONS, Upstream

CI = CHART / "ci"
SENT = [case for case in CASES if not case.provider and case.rules == "{}" and case.path.parent.name in FIVE]
"""The fixtures that say what becomes of a message by default."""

PLATFORM_LOGIN = {"username": "platform-user", "password": "platform-password"}
LATER = 86_400

Login = Callable[[smtplib.SMTP], object]


def rules(field: str) -> str:
    """Rules of a provider of our own, in which one field is the group."""
    return f"title: Acme\nfields: [X-Acme-*]\ntranslate:\n  - {{field: X-Acme-{field}, to: X-Cmail-GroupName}}\n"


def own_values(path: Path, values: dict[str, Any]) -> Path:
    """A values file of the test's own; JSON is YAML."""
    path.write_text(json.dumps(values), "utf-8")
    return path


@frozen
class Site:
    """
    A pod that runs, and how to send to it.

    Args:
        port: Of a listener.
        context: How a client checks certificates; without one, it sends in clear.
        log_in: What a client does before it sends.
    """

    running: RunningPod
    proxy: Container
    port: int
    context: ssl.SSLContext | None
    log_in: Login

    @contextlib.contextmanager
    def client(self) -> Iterator[smtplib.SMTP]:
        """Connect and log in as an app does."""
        with contextlib.closing(smtplib.SMTP(self.running.address, self.port, timeout=WAIT_SECONDS)) as client:
            client.ehlo("app.example.com")
            if self.context:
                client.starttls(context=self.context)
                client.ehlo("app.example.com")
            self.log_in(client)
            yield client

    def begin(self, client: smtplib.SMTP, case: Case) -> None:
        """Say MAIL and RCPT for a fixture."""
        assert client.mail(case.reverse_path)[0] == 250
        for recipient in case.recipients:
            assert client.rcpt(recipient)[0] == 250

    def send(self, case: Case) -> Iterator[str]:
        """Send a fixture on a connection of its own; the reply to it."""
        with self.client() as client:
            self.begin(client, case)
            code, text = client.data(case.path.read_bytes())
            yield f"{code} {text.decode()}"

    def translate_fixtures(self, upstream: Upstream) -> None:
        """Every fixture arrives at the platform as its expected file says, or is answered as that says."""
        for case in SENT:
            already = len(upstream.taken)
            (reply,) = self.send(case)
            error = case.beside(".error")
            if error.exists():
                assert f"{reply}\n" == error.read_text("ascii"), case.id
                assert len(upstream.taken) == already
                continue
            assert reply == "250 2.0.0 queued as PLATFORM1", case.id
            trace, _, rest = upstream.taken[already].content.partition(b" +0000\r\n")
            assert trace.startswith(b"Received: from app.example.com ([127.0.0.1])\r\n\tby ")
            assert rest == case.beside(".expected.eml").read_bytes(), case.id

    def group(self, upstream: Upstream) -> str:
        """Send a message that labels itself in two ways; the group that came of it."""
        with self.client() as client:
            client.sendmail("a@example.com", ["b@example.net"], b"X-Acme-One: 1\r\nX-Acme-Two: 2\r\n\r\nbody\r\n")
        head = upstream.taken[-1].content.partition(b"\r\n\r\n")[0].decode()
        return head.partition("X-Cmail-GroupName: ")[2].partition("\r\n")[0]

    def take_changed_rules(self, upstream: Upstream) -> None:
        """Kubelet turns the link of the rules; the next message is translated by the new ones, without a restart."""
        (found,) = [name for kind, name in self.running.objects if kind == "ConfigMap" and name.endswith("-rules")]
        assert self.group(upstream) == "1"
        self.running.change(config_map(found, {"acme.yaml": rules("Two")}))
        eventually(lambda: self.proxy.events("rules_reloaded"), "rules reloaded")
        assert self.group(upstream) == "2"
        assert len(self.proxy.events("listening")) == 1

    def end_in_flight(self, case: Case, delay: bool) -> str:
        """
        SIGTERM in the middle of a message: readiness fails at once, the message is finished, exit code 0 in time.

        Returns:
            The reply to the message.
        """
        with self.client() as client:
            self.begin(client, case)
            assert client.docmd("DATA")[0] == 354
            head, _, rest = case.path.read_bytes().partition(b"\r\n\r\n")
            client.send(head)
            self.proxy.terminate()
            self.proxy.wait_for("readinessProbe", expected=False)
            if delay:  # endpoints do not go away everywhere at once, so who comes now is taken
                with self.client() as late:
                    assert late.noop()[0] == 250
            eventually(self.refuses, "nobody new is taken")
            assert self.proxy.probe("livenessProbe")
            assert not self.proxy.ended()
            client.send(b"\r\n\r\n" + rest + (b"" if rest.endswith(b"\r\n") else b"\r\n") + b".\r\n")
            code, text = client.getreply()
        assert self.proxy.wait_for_end() == 0
        assert len(self.proxy.events("stopped")) == len(self.proxy.events("listening"))
        assert "Traceback" not in self.proxy.log
        return f"{code} {text.decode()}"

    def refuses(self) -> bool:
        """Whether nobody can connect any more."""
        try:
            socket.create_connection((self.running.address, self.port), timeout=WAIT_SECONDS).close()
        except ConnectionRefusedError:
            return True
        return False


def by(username: str, password: str) -> Login:
    """Log in with AUTH PLAIN."""

    def log_in(client: smtplib.SMTP) -> None:
        assert client.docmd("AUTH", f"PLAIN {plain(username, password)}")[0] == 235

    return log_in


def token_of(running: RunningPod, name: str = "shop-cmail-proxy-token") -> str:
    """The token that the chart made."""
    return content(running.objects["Secret", name])["token"].decode()


def passing(case: str) -> Case:
    """A fixture by name."""
    (found,) = [each for each in CASES if each.id == case]
    return found


def open_ports(running: RunningPod, proxy: Container) -> set[str]:
    """The names of the container's ports on which somebody listens."""
    found = set()
    for name, port in proxy.ports.items():
        with socket.socket() as sock:
            if sock.connect_ex((running.address, port)) == 0:
                found.add(name)
    return found


# Gateway


def test_gateway_lives_as_its_manifest_says(tmp_path: Path) -> None:
    """
    Probes, fixtures with the token of the Secret, the platform's login from another, a certificate from a third, rules
    that change, the pod of ``helm test``, and an end in which no message is lost.
    """
    authority = trustme.CA()
    at, platform = address(), address()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(platform).configure_cert(server)
    shown = authority.issue_cert(at, "shop-cmail-proxy.mail.svc")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    extensions = (*EXTENSIONS, "AUTH PLAIN", "SMTPUTF8")
    with Upstream(context=server, address=platform, extensions=extensions) as upstream, folder() as home:
        values = {
            "config": {
                "relay": {"host": platform, "port": upstream.port, "ca_file": "/etc/company-ca/ca.pem"},
                "shutdown": {"delay_seconds": 2},
            },
            "credentials": {"relay": {"existingSecret": "platform"}},
            "certificate": {"existingSecret": "smtp-certificate"},
            "extraMappings": {"acme": rules("One")},
            "extraVolumes": [{"name": "ca", "configMap": {"name": "company-ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/company-ca", "readOnly": True}],
        }
        rendered = helm().render([CI / "gateway-values.yaml", own_values(tmp_path / "own.yaml", values)])
        kept = [
            secret("platform", PLATFORM_LOGIN),
            secret("smtp-certificate", {
                "tls.crt": "".join(each.bytes().decode() for each in shown.cert_chain_pems),
                "tls.key": shown.private_key_pem.bytes().decode(),
            }),
            config_map("company-ca", {"ca.pem": authority.cert_pem.bytes().decode()}),
        ]  # fmt: skip
        with RunningPod(the_pod(rendered), [*rendered, *kept], home / "gateway", at) as running:
            proxy = running.container()
            proxy.come_up()
            assert open_ports(running, proxy) == {"smtp-2525", "smtp-2465", "probes"}
            assert proxy.ports == {"smtp-2525": 2525, "smtp-2465": 2465, "probes": 9025}
            token = token_of(running)
            site = Site(running, proxy, 2525, trusting(str(tmp_path / "ca.pem")), by(token, token))
            site.translate_fixtures(upstream)
            assert {word for each in upstream.dialogues for word in each.commands if word.startswith("AUTH")} == {
                f"AUTH PLAIN {plain(**PLATFORM_LOGIN)}"
            }
            assert all(each.tls for each in upstream.dialogues)
            with smtplib.SMTP_SSL(at, 2465, timeout=WAIT_SECONDS, context=site.context) as client:
                assert client.login(token, token)[0] == 235
            site.take_changed_rules(upstream)
            already = len(upstream.taken)
            run_test_pod(rendered, running, home / "test")
            assert len(upstream.taken) == already
            assert site.end_in_flight(passing("mailgun/05-tracking-off"), delay=True).startswith("250 ")
            assert upstream.taken[-1].content.endswith(
                passing("mailgun/05-tracking-off").beside(".expected.eml").read_bytes()
            )


def run_test_pod(rendered: list[Object], serving: RunningPod, home: Path) -> None:
    """What `helm test` runs: by the Service to the proxy, with the token, into test mode. Exit code 0."""
    (pod,) = pods(of_kind(rendered, "Pod"))
    with RunningPod(to_the_service(pod, rendered), rendered, home, serving.address) as running:
        done = running.container("send").run()
        assert done.returncode == 0, done.stdout + done.stderr
        assert "discarded: 250 2.0.0 Discarded and not sent: X-Mailgun-Drop-Message" in done.stdout
        assert token_of(running) not in done.stdout + done.stderr


def to_the_service(pod: Pod, rendered: list[Object]) -> Pod:
    """Do what DNS and the Service would: the name and port of --server become an address and the listener's port."""
    copied = json.loads(json.dumps(pod.spec))
    arguments = copied["containers"][0]["args"]
    (index,) = [index for index, each in enumerate(arguments) if each.startswith("--server=")]
    name, _, port = arguments[index].removeprefix("--server=").partition(":")
    (target,) = [
        each["targetPort"] for each in one(rendered, "Service", name)["spec"]["ports"] if each["port"] == int(port)
    ]
    arguments[index] = f"--server=127.0.0.1:{target}"
    return Pod(pod.owner, pod.metadata, copied)


# Sidecar


def test_sidecar_lives_beside_the_app(tmp_path: Path) -> None:
    """
    The pod of the example: the sidecar comes up before the app, takes the login that the app always had, and what the
    app's own programs send arrives translated, also those of the job; at the end the app goes first.
    """
    platform = address()
    with (
        Upstream(address=platform, extensions=(*EXTENSIONS, "AUTH PLAIN", "SMTPUTF8")) as upstream,
        folder() as home,
        legacy_app(helm()) as chart,
    ):
        values = {
            "everySeconds": 3600,
            "cmail-proxy": {
                "config": {
                    "relay": {"host": platform, "port": upstream.port, "tls": "none"},
                    "rules": {"when_absent": "platform"},
                },
                "credentials": {
                    "tokens": [{"name": "fixtures", "token": "a-token-of-the-test"}],
                },
                "extraMappings": {"acme": rules("One")},
            },
        }
        rendered = helm().render([own_values(tmp_path / "own.yaml", values)], chart=chart)
        service = {"kind": "Service", "metadata": {"name": "cmail-proxy"}, "spec": {"ports": [{"port": 25}]}}
        kept = [secret("platform", PLATFORM_LOGIN), service]  # whose variables have the prefix of settings
        with RunningPod(the_pod(rendered, "Deployment"), [*rendered, *kept], home / "app") as running:
            proxy, app = running.container(), running.container("app")
            proxy.come_up()
            app.start()
            upstream.wait_for(lambda: len(upstream.taken) == 1)
            assert_sent_by_the_app(upstream, "Something happened", "notice")
            token = "a-token-of-the-test"
            site = Site(running, proxy, 2525, None, by(token, token))
            site.translate_fixtures(upstream)
            site.take_changed_rules(upstream)
            app.terminate()
            assert app.wait_for_end() == 0
            assert site.end_in_flight(passing("mailgun/05-tracking-off"), delay=False).startswith("250 ")
        with RunningPod(the_pod(rendered, "CronJob"), [*rendered, *kept], home / "job") as running:
            proxy, app = running.container(), running.container("app")
            proxy.come_up()
            done = app.run()  # the job ends with it, though the sidecar goes on
            assert (done.returncode, done.stdout) == (0, "sent: The day in short\n"), done.stderr
            assert_sent_by_the_app(upstream, "The day in short", "digest")
            proxy.terminate()
            assert proxy.wait_for_end() == 0


def assert_sent_by_the_app(upstream: Upstream, subject: str, group: str) -> None:
    """The app's message has the platform's fields and none of Mailgun's."""
    message = email.message_from_bytes(upstream.taken[-1].content, policy=email.policy.default)
    assert message["Subject"] == subject
    fields = {name: value for name, value in message.items() if name.lower().startswith(("x-cmail", "x-mailgun"))}
    assert fields == {"X-Cmail-GroupName": group, "X-Cmail-TrackClicks": "false"}


# Core


def test_core_lives_and_its_queue_outlives_it(tmp_path: Path) -> None:
    """
    Fixtures end in the mailbox on the volume and in the report, by group; what waits at the end is there again after a
    restart with the same volume.
    """
    values = {"config": {"shutdown": {"delay_seconds": 0}}, "extraMappings": {"acme": rules("One")}}
    rendered = helm().render([CI / "core-values.yaml", own_values(tmp_path / "own.yaml", values)])
    with folder() as home:
        with RunningPod(the_pod(rendered), rendered, home / "pod") as running:
            proxy = running.container()
            proxy.come_up()
            assert open_ports(running, proxy) == {"smtp-2525", "smtp-2465", "probes", "public"}
            assert proxy.get("/o/nothing", "public")[0] == 404
            token = token_of(running)
            site = Site(running, proxy, 2525, trusting(), by(token, token))
            keep_fixtures(site)
            run_test_pod(rendered, running, home / "test")
            line = [each for each in proxy.events("message") if each["outcome"] == "discarded"][-1]
            assert (line["providers"], line["group"]) == (["mailgun"], "helm-test")
            with site.client() as client:
                at = json.dumps({"category": "later", "send_at": int(time.time()) + LATER})
                client.sendmail("a@example.com", ["b@example.net"], f"X-SMTPAPI: {at}\r\n\r\nbody\r\n".encode())
            reply = site.end_in_flight(passing("mailgun/02-group"), delay=False)
            assert reply.startswith("250 2.0.0 Message queued as ")
        with RunningPod(the_pod(rendered), rendered, home / "pod") as running:
            proxy = running.container()
            proxy.come_up()
            waiting = json.loads(told(proxy, "queue", "list", "--json"))
            assert [each["address"] for item in waiting for each in item["recipients"] if item["group"] == "later"] == [
                "b@example.net"
            ]
            eventually(lambda: received(proxy)["welcome"] >= 1, "the message that was in flight")
            proxy.terminate()
            assert proxy.wait_for_end() == 0


def told(proxy: Container, *arguments: str) -> str:
    """What a command says in the running container, as NOTES.txt and the docs give it."""
    done = proxy.run(*arguments, "--config", "/etc/cmail-proxy/settings/settings.yaml")
    assert done.returncode == 0, done.stderr
    return done.stdout


def received(proxy: Container) -> Counter[str]:
    """The messages of each group in the report."""
    return Counter({each["group"]: each["received"] for each in json.loads(told(proxy, "report", "--json"))})


def keep_fixtures(site: Site) -> None:
    """Every fixture ends in the mailbox and its group's figures, or is answered as its file says."""
    groups: Counter[str] = Counter()
    recipients: Counter[str] = Counter()
    for case in SENT:
        (reply,) = site.send(case)
        error = case.beside(".error")
        if error.exists():
            assert f"{reply}\n" == error.read_text("ascii"), case.id
            continue
        assert reply.startswith("250 2.0.0 Message queued as "), (case.id, reply)
        expected = email.message_from_bytes(case.beside(".expected.eml").read_bytes(), policy=email.policy.default)
        groups[str(expected["X-Cmail-GroupName"] or "Ungrouped emails")] += 1
        recipients.update(case.recipients)
    assert received(site.proxy) == groups
    mailbox = site.running.writable / "cmail-proxy-data" / "mailbox" / "new"

    def kept() -> list[Copy]:
        return [Copy.read(path.name, path.read_bytes()) for path in mailbox.iterdir()] if mailbox.is_dir() else []

    def there() -> Counter[str]:
        waiting = json.loads(
            told(site.proxy, "queue", "list", "--json")
        )  # some fixtures are to be sent at a later time
        found = Counter(each["address"] for item in waiting for each in item["recipients"])
        return found + Counter(address for copy in kept() for address in copy.recipients)

    eventually(lambda: there() == recipients, f"all {recipients}")
    for copy in kept():
        controls = [name for name in copy.names if name.startswith(("x-cmail-", "x-mailgun-", "x-mc-", "x-pm-"))]
        assert controls == []

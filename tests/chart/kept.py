"""Secrets and ConfigMaps that are not the chart's: everything that rendered pods name and somebody else keeps."""

from collections.abc import Iterator, Sequence

import trustme
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from proxy.cli import main
from tests.chart.kubelet import RunningPod, config_map, folder, secret
from tests.chart.rendering import Object, pods

RULES = """\
title: Company
reference: https://mail.example.com/docs
fields: [X-Company-*]
translate:
  - {field: X-Company-Group, to: X-Cmail-GroupName}
"""


def kept_by_others(found: Sequence[Object]) -> list[Object]:
    """Make whatever pods of these objects need and these objects do not have, with contents that pass for real."""
    there = {(each["kind"], each["metadata"]["name"]) for each in found}
    needed: dict[tuple[str, str], dict[str, str]] = {}
    for kind, name, key in _needed(found):
        if (kind, name) not in there:
            needed.setdefault((kind, name), {})[key] = ""
    return [
        secret(name, _secrets(data)) if kind == "Secret" else config_map(name, dict.fromkeys(data, RULES))
        for (kind, name), data in needed.items()
    ]


def _needed(found: Sequence[Object]) -> Iterator[tuple[str, str, str]]:
    for pod in pods(found):
        for container in pod.containers:
            for each in container.get("env", ()):
                reference = each.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    yield "Secret", reference["name"], reference["key"]
        for volume in pod.spec.get("volumes", ()):
            sources = volume["projected"]["sources"] if "projected" in volume else [volume]
            for source in sources:
                part = source.get("secret")
                for item in part["items"] if part else ():
                    yield "Secret", part.get("name") or part["secretName"], item["key"]
                if "configMap" in source:
                    yield "ConfigMap", source["configMap"]["name"], "company.yaml"


def _secrets(data: dict[str, str]) -> dict[str, str]:
    """A certificate for two keys of which one is its key; a key of DKIM for a PEM file; else a word."""
    keys = sorted(data)
    if len(keys) == 2 and any("key" in key for key in keys):
        certificate = trustme.CA().issue_cert("mail.example.com")
        chain = "".join(each.bytes().decode() for each in certificate.cert_chain_pems)
        private = certificate.private_key_pem.bytes().decode()
        return {key: private if "key" in key else chain for key in keys}
    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {key: pem.decode() if key.endswith(".pem") else f"a-word-for-{key}-of-some-length" for key in keys}


def checked(found: Sequence[Object]) -> Result:
    """Let the program itself check the settings of the first pod that has the proxy, with all mounts and variables."""
    pod = next(each for each in pods(found) if any(container["name"] == "cmail-proxy" for container in each.containers))
    with folder() as home, RunningPod(pod, [*found, *kept_by_others(found)], home / "pod") as running:
        container = running.container()
        serve, *options = container.spec["args"]
        assert serve == "serve"
        line = ["check", *(running.here(option) for option in options)]
        return CliRunner().invoke(main, line, env=container.environ)

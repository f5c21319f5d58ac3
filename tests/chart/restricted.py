"""
The restricted pod security standard, as far as it can be broken in a pod, and a read-only root on top.

Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from collections.abc import Collection, Iterator

from tests.chart.rendering import Object, Pod

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_syncookies",
}


def violations(pod: Pod, but: Collection[str] = ()) -> list[str]:
    """List what a pod breaks, in all its containers but some."""
    context = pod.spec.get("securityContext", {})
    found = [f"pod: {each}" for each in _of_pod(pod, context)]
    for container in pod.containers:
        if container["name"] not in but:
            found += [f"{container['name']}: {each}" for each in _of_container(container, context)]
    return found


def _of_pod(pod: Pod, context: Object) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(name):
            yield name
    for volume in pod.spec.get("volumes", ()):
        if not VOLUMES & set(volume):
            yield f"volume {volume['name']}"
    for sysctl in context.get("sysctls", ()):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"


def _of_container(container: Object, above: Object) -> Iterator[str]:
    own = container.get("securityContext", {})
    both = {**above, **own}
    if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
        yield "may be root"
    if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield "may get privileges"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()) or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "has capabilities"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "may write to its root"
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "has a port of the node"

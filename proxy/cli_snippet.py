"""``cmail-proxy sidecar-snippet``: the sidecar's part of a pod, for those who use neither Helm nor Kustomize."""

import re
from pathlib import Path

import click

from proxy import __version__

_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}")
_IMAGE = f'"cmail-proxy:{__version__}"'


def shipped_sidecar() -> Path:
    """The folder of the Kustomize component: inside the package, or beside it in a checkout."""
    inside = Path(__file__).parent / "sidecar"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "charts" / "kustomize" / "sidecar"


@click.command("sidecar-snippet")
@click.option("--image", help=f"The image as your nodes know it, instead of {_IMAGE}.")
@click.option("--settings", is_flag=True, help="Write an example of the settings file that goes with it instead.")
def sidecar_snippet(image: str | None, settings: bool) -> None:
    """
    Write the sidecar for Kubernetes, as a patch.

    The patch is for a Deployment, and goes to standard output. It is what the Helm chart gives in mode sidecar. The
    comments in it say which ConfigMap and Secrets it needs.
    """
    if image is not None and not _REFERENCE.fullmatch(image):
        raise click.BadParameter(f"{image!r} is no image reference such as registry.example.com/mail/cmail-proxy:1.0")
    if settings and image:
        raise click.UsageError("--image goes into the patch; --settings writes another file")
    text = (shipped_sidecar() / ("settings.yaml" if settings else "pod.yaml")).read_text("utf-8")
    click.echo(text.replace(_IMAGE, f'"{image}"') if image else text, nl=False)


COMMANDS = (sidecar_snippet,)

"""What the commands share: the settings file they take, and how they end when something is wrong."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from proxy.problems import ProblemsError
from proxy.settings import CONFIG_VARIABLE, Settings, load

CONFIG = click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar=CONFIG_VARIABLE,
    help=f"Settings file (YAML). Also by {CONFIG_VARIABLE}; single settings by CMAIL_PROXY_… variables.",
)


def loaded(config: Path | None) -> Settings:
    """Read the settings; every problem is printed, and ends the program with 1."""
    try:
        return load(config, os.environ)
    except ProblemsError as error:
        fail(error)


def fail(error: ProblemsError) -> NoReturn:
    """Print all problems and their number, and end with 1."""
    for problem in error.problems:
        click.echo(f"error: {problem}", err=True)
    count = len(error.problems)
    stop(f"{count} problem{'s' if count > 1 else ''}")


def stop(text: str) -> NoReturn:
    """Say why nothing was done, and end with 1."""
    click.echo(f"cmail-proxy: {text}", err=True)
    sys.exit(1)

"""The pins: what a fresh machine installs is decided here and not by what was released since."""

import re
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILES = ("constraints.txt", "constraints-dev.txt")


def _pins(file: str) -> dict[str, frozenset[str]]:
    """The pinned packages with the extras they are pinned with."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?==", (ROOT / file).read_text(), re.MULTILINE)
    return {canonicalize_name(name): frozenset(filter(None, extras.split(","))) for name, extras in found}


def _needed() -> Iterator[tuple[str, Requirement]]:
    for distribution in distributions():
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                yield canonicalize_name(distribution.name), requirement


@pytest.mark.parametrize("file", FILES)
def test_package_needed_with_an_extra_is_pinned_with_it(file: str) -> None:
    """pip resolves ``name[extra]`` apart from ``name``: a pin without the extra fails once a newer version is out."""
    pins = _pins(file)
    assert len(pins) > 10
    needed = [(name, each) for name, each in _needed() if name in pins and each.extras]
    lacking = [f"{each} (for {name})" for name, each in needed if not each.extras <= pins[canonicalize_name(each.name)]]
    assert not lacking


@pytest.mark.parametrize("file", FILES)
def test_pins_name_no_registry(file: str) -> None:
    """Where packages come from is each machine's own business."""
    assert not re.search(r"https?://|index-url|find-links", (ROOT / file).read_text())


@pytest.mark.parametrize("file", FILES)
def test_every_pin_is_exact_and_has_hashes(file: str) -> None:
    """What is installed is what was looked at: one version each, and the digests of its files."""
    lines = (ROOT / file).read_text().replace("\\\n", " ").splitlines()
    pins = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert len(pins) > 10
    for pin in pins:
        assert re.match(r"[A-Za-z0-9._-]+(?:\[[^\]]*\])?==[^ ;]+ ", pin), pin
        assert re.search(r" --hash=sha256:[0-9a-f]{64}", pin), pin

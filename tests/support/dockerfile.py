"""
A Dockerfile read, and its steps done on this machine: enough of the language for ours, and an error for anything else.

The paths of the image are rewritten into a folder; programs of the base image are those of a Python found here.
"""

import json
import os
import re
import shutil
import string
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from attrs import field, frozen

KEYWORDS = {
    "FROM",
    "ARG",
    "ENV",
    "LABEL",
    "WORKDIR",
    "COPY",
    "RUN",
    "USER",
    "EXPOSE",
    "STOPSIGNAL",
    "ENTRYPOINT",
    "CMD",
}

# Never of use to an image, and large; that they are ignored is asked by a test of its own.
_NOT_WALKED = {".git", ".venv", "node_modules"}


@frozen
class Step:
    """An instruction, e.g. COPY with ``--from=builder``, and what it says, its variables filled in."""

    keyword: str
    flags: Mapping[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        """What stands in JSON form, or parted by blanks."""
        if self.text.startswith("["):
            words: list[str] = json.loads(self.text)
            return words
        return self.text.split()


@frozen
class Stage:
    """
    All from one FROM to the next.

    Args:
        environ: Of its RUN instructions, and of what runs in the end; a PATH ends in ``$PATH`` of the base.
    """

    base: str
    name: str
    steps: Sequence[Step]
    environ: Mapping[str, str]

    def of(self, keyword: str) -> list[Step]:
        """Its instructions of one kind."""
        return [step for step in self.steps if step.keyword == keyword]

    def last(self, keyword: str) -> Step:
        """The instruction of that kind that counts."""
        return self.of(keyword)[-1]


@frozen
class Dockerfile:
    """All stages; the last one is the image."""

    stages: Sequence[Stage]

    @property
    def image(self) -> Stage:
        """What is kept."""
        return self.stages[-1]


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Keyword and text of each instruction, lines that go on joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    for line in joined.splitlines():
        keyword, _, rest = line.partition(" ")
        if keyword not in KEYWORDS:
            raise AssertionError(f"an instruction this cannot read: {line}")
        yield keyword, rest.strip()


def pairs(text: str) -> dict[str, str]:
    """The parts ``NAME=VALUE`` of ARG, ENV and LABEL; a value may be quoted."""
    found = re.findall(r'([\w.-]+)=("[^"]*"|\S*)', text)
    return {name: value.strip('"') for name, value in found}


def read(text: str, arguments: Mapping[str, str] | None = None) -> Dockerfile:
    """Read a Dockerfile; *arguments* are those of ``--build-arg``."""
    given = dict(arguments or {})
    outer: dict[str, str] = {}
    stages: list[dict[str, Any]] = []
    for keyword, rest in instructions(text):
        known: dict[str, str] = {**stages[-1]["arguments"], **stages[-1]["environ"]} if stages else outer
        filled = (
            rest if keyword == "RUN" else string.Template(rest).safe_substitute(outer if keyword == "FROM" else known)
        )
        if keyword == "FROM":
            base, _, name = filled.partition(" AS ")
            stages.append({"base": base, "name": name, "steps": [], "environ": {}, "arguments": {}})
            continue
        if keyword == "ARG":
            name, _, default = filled.partition("=")
            value = given.get(name, default or outer.get(name, ""))
            (stages[-1]["arguments"] if stages else outer)[name] = value
            continue
        flags = dict(re.findall(r"(?:^|(?<= ))--([a-z]+)=(\S+) ", filled)) if keyword == "COPY" else {}
        plain = re.sub(r"^(?:--[a-z]+=\S+ )+", "", filled) if keyword == "COPY" else filled
        if keyword == "ENV":
            stages[-1]["environ"].update(pairs(plain))
        stages[-1]["steps"].append(Step(keyword, flags, plain))
    return Dockerfile([Stage(each["base"], each["name"], each["steps"], each["environ"]) for each in stages])


# What COPY can see


class Ignored:
    """What ``.dockerignore`` leaves out: the last pattern that matches a path, or a folder it is in, decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        patterns = [line for line in lines if line and not line.startswith("#")]
        self._rules = [(not each.startswith("!"), _regex(each.lstrip("!").strip("/"))) for each in patterns]

    def __call__(self, path: PurePosixPath) -> bool:
        places = [str(each) for each in (path, *path.parents)][:-1]
        ignored = False
        for ignores, regex in self._rules:
            if any(regex.fullmatch(place) for place in places):
                ignored = ignores
        return ignored


def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern)
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(words.get(part, part if part.startswith("[") else re.escape(part)) for part in parts))


def context(root: Path, ignored: Ignored, target: Path) -> None:
    """Copy what a build would be given of *root*."""
    for folder, folders, files in os.walk(root):
        folders[:] = [each for each in folders if each not in _NOT_WALKED]
        for name in files:
            path = (Path(folder) / name).relative_to(root)
            if not ignored(PurePosixPath(path)):
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / path, target / path)


# Doing the steps


@frozen
class Builder:
    """
    Does the steps of a stage.

    Args:
        root: Stands for the root of the stage's file system.
        context: What COPY copies from, without ``--from``.
        stages: Roots of other stages by name.
        path: Where the programs of the base image are.
        places: Absolute paths of the image that lie below *root*; all others are this machine's.
    """

    root: Path
    context: Path
    stages: Mapping[str, Path]
    path: str
    places: Iterable[str]
    state: dict[str, str] = field(factory=lambda: {"folder": "/"})

    def moved(self, text: str) -> str:
        """A text with the paths of the image as they are here."""
        for place in self.places:
            text = re.sub(rf"(?<![\w./-]){re.escape(place)}(?![\w-])", f"{self.root}{place}", text)
        return text

    def here(self, path: str) -> Path:
        """A path of the image, which may be relative to its WORKDIR."""
        return self.root / str(PurePosixPath(self.state["folder"]) / path).lstrip("/")

    def environment(self, stage: Stage) -> dict[str, str]:
        """The environment of what runs, with nothing of ours that could help it."""
        environ = {name: self.moved(value) for name, value in stage.environ.items()}
        return {**environ, "PATH": environ.get("PATH", "$PATH").replace("$PATH", self.path)}

    def do(self, stage: Stage, extra: Mapping[str, str]) -> None:
        """Do all steps that change files; *extra* is what this machine's package index needs in the environment."""
        for step in stage.steps:
            if step.keyword == "WORKDIR":
                self.state["folder"] = step.text
                self.here(".").mkdir(parents=True, exist_ok=True)
            elif step.keyword == "COPY":
                self._copy(step)
            elif step.keyword == "RUN":
                subprocess.run(
                    ["/bin/sh", "-c", self.moved(step.text)],
                    cwd=self.here("."),
                    env={**extra, **self.environment(stage)},
                    check=True,
                    timeout=300,
                )

    def _copy(self, step: Step) -> None:
        *sources, target = step.words
        origin = self.stages[step.flags["from"]] if "from" in step.flags else self.context
        for source in sources:
            found = origin / source.lstrip("/")
            if found.is_dir():
                shutil.copytree(found, self.here(target), symlinks=True, dirs_exist_ok=True)
            elif found.is_file():
                place = self.here(target) / found.name if target.endswith("/") else self.here(target)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, place)
            else:
                raise AssertionError(f"COPY {source}: there is none; does .dockerignore let it through?")
        if "chown" in step.flags and os.geteuid() == 0:
            uid, gid = map(int, step.flags["chown"].split(":"))
            for each in (self.here(target), *self.here(target).rglob("*")):
                os.chown(each, uid, gid, follow_symlinks=False)

"""The rules in force: rule files and policy as one engine, replaced as a whole when a file changes."""

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from proxy.problems import Problem, ProblemsError, did_you_mean
from proxy.settings import Rules, Settings, provider_references
from proxy.translate import model, parse
from proxy.translate.engine import Engine
from proxy.translate.model import RuleFile


def shipped_rules() -> Path:
    """The folder of the rule files that come with the program: inside the package, or beside it in a checkout."""
    inside = Path(__file__).parent / "mappings"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "mappings"


def policy(rules: Rules) -> model.Policy:
    """Bring ``rules:`` of the settings into the form the engine wants."""
    when_absent = rules.when_absent
    defaults: dict[str, dict[str, bool]] | None = None  # each provider's own
    if not isinstance(when_absent, str):
        defaults = {provider: dict(table.items()) for provider, table in when_absent.items()}
    elif when_absent == "platform":
        defaults = {}
    actions = rules.actions
    return model.Policy(
        optional=frozenset(rules.optional),
        when_absent=defaults,
        refuse_invalid=rules.on_invalid == "refuse",
        soften=rules.untranslatable == "warn",
        actions_by_class={name: model.Action(action) for name, action in actions.by_class.items()},
        actions_by_provider={
            provider: {name: model.Action(action) for name, action in table.items()}
            for provider, table in actions.by_provider.items()
        },
        strip=model.Strip(rules.strip),
    )


class RuleBook:
    """
    The engine in force.

    Raises:
        ProblemsError: At the start, if any rule file is wrong: there is nothing to fall back to then.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stamp = self._look()
        self._digest = self._content()
        self.engine = self._load()

    def reload(self) -> bool:
        """
        Take changed files into force.

        Returns:
            Whether anything changed.

        Raises:
            ProblemsError: The new files are wrong; the old rules stay in force, until the files change again.
        """
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        digest = self._content()
        if digest == self._digest:
            return False
        self._digest = digest
        self.engine = self._load()
        return True

    @property
    def count(self) -> int:
        """Number of rules in force."""
        return sum(len(file.translate) + len(file.untranslatable) for file in self.engine.files)

    def _load(self) -> Engine:
        rules = self._settings.rules
        problems = self._directory_problems()
        places = self._places
        known = parse.known_providers(*places)
        missing = [provider for provider in rules.providers if parse.find(provider, *places) is None]
        if not problems:  # a file that cannot be found may be in a folder that cannot be
            expected = f"one of {', '.join(known)}"
            problems = [
                self._settings.source.problem(
                    f"rules.providers[{index}]", repr(provider), expected, did_you_mean(provider, known)
                )
                for index, provider in enumerate(rules.providers)
                if provider in missing
            ]
        files: tuple[RuleFile, ...] = ()
        try:
            files = parse.load([provider for provider in rules.providers if provider not in missing], *places)
        except ProblemsError as error:
            problems.extend(error.problems)
        if problems:
            raise ProblemsError(problems)
        active = [file.provider for file in files]
        words = {rule.optional for file in files for rule in file.translate if rule.optional}
        expected = f"one of rules.providers: {', '.join(active)}"
        problems = [
            Problem(each.file, each.line, each.key, repr(each.provider), expected, did_you_mean(each.provider, active))
            for each in provider_references(self._settings)
            if each.provider not in active
        ]
        for index, word in enumerate(rules.optional):
            if word not in words:
                expected = ", ".join(sorted(words)) or "nothing: the active rule files have no optional rules"
                hint = did_you_mean(word, words)
                problems.append(self._settings.source.problem(f"rules.optional[{index}]", repr(word), expected, hint))
        if problems:
            raise ProblemsError(problems)
        return Engine(files, policy(rules), deliver_later=self._settings.delivers)

    def _directory_problems(self) -> list[Problem]:
        """What is wrong with ``rules.directories``: our own file would count in the place of one that is not found."""
        problems: list[Problem] = []
        rules = self._settings.rules
        for index, folder in enumerate(rules.directories):
            problem = partial(self._settings.source.problem, f"rules.directories[{index}]")
            expected = "a folder with rule files"
            if not folder.exists():
                hint = "make it, or take it out of the list"
                problems.append(problem(f"'{folder}', which does not exist", expected, hint))
            elif not folder.is_dir():
                problems.append(problem(f"'{folder}', which is no folder", expected, "name the folder it is in"))
            elif not _readable(folder):
                problems.append(problem(f"'{folder}', which this program may not read", expected))
            else:
                names = {path.name for path in folder.iterdir()}
                for provider in dict.fromkeys(rules.providers):
                    if f"{provider}.yml" in names and f"{provider}.yaml" not in names:
                        found = f"'{provider}.yml' in '{folder}'"
                        problems.append(problem(found, f"'{provider}.yaml'", f"rename it to {provider}.yaml"))
        return problems

    @property
    def _places(self) -> tuple[list[Path], Path]:
        """Where to look for rule files."""
        return [folder for folder in self._settings.rules.directories if _readable(folder)], shipped_rules()

    def _paths(self) -> list[Path | None]:
        places = self._places
        return [parse.find(provider, *places) for provider in self._settings.rules.providers]

    def _look(self) -> tuple[object, ...]:
        """What can be seen of the files without reading them; a ConfigMap's symlink swap shows as another inode."""
        stamps: list[object] = [self._folders()]
        for path in self._paths():
            try:
                stat = path.stat() if path is not None else None
            except OSError:
                stat = None
            stamps.append((path, stat and (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)))
        return tuple(stamps)

    def _folders(self) -> list[bool]:
        """Which folders are there; one that went is told even if no file of it was in force."""
        return [_readable(folder) for folder in self._settings.rules.directories]

    def _content(self) -> bytes:
        digest = hashlib.sha256(repr(self._folders()).encode())
        for path in self._paths():
            try:
                octets = path.read_bytes() if path is not None else b""
            except OSError:
                octets = b""
            digest.update(f"{path}\0{len(octets)}\0".encode() + octets)
        return digest.digest()


def _readable(folder: Path) -> bool:
    """Tell whether this is a folder whose files can be found; never raises."""
    return os.access(f"{folder}/.", os.R_OK | os.X_OK)


def warnings(settings: Settings, engine: Engine) -> list[str]:
    """Say where the platform's defaults change what a provider did (``rules.when_absent``)."""
    return list(_warnings(settings.rules, engine))


def _warnings(rules: Rules, engine: Engine) -> Iterator[str]:
    when_absent = rules.when_absent
    if when_absent == "provider":
        return
    for file in engine.files:
        table = {} if isinstance(when_absent, str) else when_absent.get(file.provider, {})
        off = [name for name, value in file.when_absent.items() if not value and name not in table]
        if not off:
            continue
        text = f"{file.title} left {', '.join(off)} off where an app said nothing, and the platform does not"
        if isinstance(when_absent, str):
            keeps = f"rules.when_absent: provider keeps what {file.title} did"
            yield f"rules.when_absent: platform: {text}; {keeps}"
        else:
            values = ", ".join(f"{name}: false" for name in off)
            yield f"rules.when_absent.{file.provider}: {text}; {{{values}}} keeps what {file.title} did"

"""The rules in force: rule files and policy as one engine, replaced as a whole when a file changes."""

import hashlib
from pathlib import Path

from proxy.problems import Problem, ProblemsError
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
        places = (rules.directories, shipped_rules())
        known = ", ".join(parse.known_providers(*places))
        missing = [provider for provider in rules.providers if parse.find(provider, *places) is None]
        problems = [
            Problem(each.file, each.line, each.key, repr(each.provider), f"one of {known}")
            for each in provider_references(self._settings)
            if each.provider in missing and each.key.startswith("rules.providers")
        ]
        files: tuple[RuleFile, ...] = ()
        try:
            files = parse.load([provider for provider in rules.providers if provider not in missing], *places)
        except ProblemsError as error:
            problems.extend(error.problems)
        if problems:
            raise ProblemsError(problems)
        active = {file.provider for file in files}
        words = {rule.optional for file in files for rule in file.translate if rule.optional}
        problems = [
            Problem(each.file, each.line, each.key, repr(each.provider), f"one of rules.providers: {', '.join(active)}")
            for each in provider_references(self._settings)
            if each.provider not in active
        ]
        for index, word in enumerate(rules.optional):
            if word not in words:
                known = ", ".join(sorted(words)) or "nothing: the active rule files have no optional rules"
                problems.append(self._settings.source.problem(f"rules.optional[{index}]", repr(word), known))
        if problems:
            raise ProblemsError(problems)
        return Engine(files, policy(rules))

    def _paths(self) -> list[Path | None]:
        rules = self._settings.rules
        return [parse.find(provider, rules.directories, shipped_rules()) for provider in rules.providers]

    def _look(self) -> tuple[object, ...]:
        """What can be seen of the files without reading them; a ConfigMap's symlink swap shows as another inode."""
        stamps: list[object] = []
        for path in self._paths():
            try:
                stat = path.stat() if path is not None else None
            except OSError:
                stat = None
            stamps.append((path, stat and (stat.st_ino, stat.st_mtime_ns, stat.st_size)))
        return tuple(stamps)

    def _content(self) -> bytes:
        digest = hashlib.sha256()
        for path in self._paths():
            try:
                octets = path.read_bytes() if path is not None else b""
            except OSError:
                octets = b""
            digest.update(f"{path}\0{len(octets)}\0".encode() + octets)
        return digest.digest()


def warnings(settings: Settings, engine: Engine) -> list[str]:
    """Say where the platform's defaults change what a provider did (``rules.when_absent: platform``)."""
    if settings.rules.when_absent != "platform":
        return []
    found = []
    for file in engine.files:
        off = [name for name, value in file.when_absent.items() if not value]
        if off:
            found.append(
                f"rules.when_absent: platform: {file.title} left {', '.join(off)} off where an app said nothing, and "
                f"the platform does not; rules.when_absent: provider keeps what {file.title} did"
            )
    return found

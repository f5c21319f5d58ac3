"""
Tokens issued by ``cmail-proxy token add``: one file that only its owner reads, with digests and no tokens in it.

The command line writes it while the server runs, so changes are made under a lock and seen as a whole or not at all.

Trust: who may write ``data_dir`` may send mail.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import field, frozen

from proxy.private_file import locked, write_private
from proxy.problems import Problem, ProblemsError

PREFIX = "cmp_"
"""Begins every token, so that one which leaked into a repository or a log can be searched for."""

VERSION = 1
EXPECTED = "tokens as cmail-proxy token add writes them"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class TokenError(ValueError):
    """The operator asked for something that cannot be done; the text is for them."""


@frozen
class IssuedToken:
    """
    What is kept of a token.

    Args:
        name: What logs and metrics call the holder.
        digest: SHA-256 of the token. A plain digest is enough, because 32 random octets cannot be guessed.
        created_at: Aware, UTC.
    """

    name: str
    digest: bytes = field(repr=False)
    created_at: datetime


def utc_now() -> datetime:
    """Tell the time; aware, UTC."""
    return datetime.now(UTC)


class TokenStore:
    """
    The issued tokens, as last read.

    Args:
        path: The file. It need not exist before the first token.
        clock: Tells the time; aware, UTC.

    Raises:
        ProblemsError: The file is damaged or cannot be read.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime] = utc_now) -> None:
        self.path = path
        self._clock = clock
        self._seen: bytes | str | None = None
        self._tokens: tuple[IssuedToken, ...] = ()
        self.reload()

    def list(self) -> tuple[IssuedToken, ...]:
        """List the tokens in the order they were issued."""
        return self._tokens

    def digests(self) -> tuple[tuple[str, bytes], ...]:
        """List the name and the SHA-256 digest of each token."""
        return tuple((token.name, token.digest) for token in self._tokens)

    def reload(self) -> bool:
        """
        Read the file again if its content changed since the last look, whatever came of that.

        Returns:
            Whether there was something new.

        Raises:
            ProblemsError: The new content is damaged, or the file is gone or cannot be read. The tokens read before
                stay in force.
        """
        content = self._read()
        if content == self._seen:
            return False
        before, self._seen = self._seen, content
        if content is None and isinstance(before, str) and not self._tokens:
            return False  # it could not be looked at for a while, and is not there
        if content is None:
            raise self._problem("no file, though there was one", "put it back, or revoke tokens by their names")
        self._tokens = self._parse(content)
        return True

    def add(self, name: str) -> str:
        """
        Issue a token.

        Args:
            name: 1 to 64 letters, digits, ``.``, ``_`` and ``-``, used by no other issued token.

        Returns:
            The token. It is not kept, so it cannot be shown again.

        Raises:
            TokenError: The name has another form or is in use.
            ProblemsError: The file is damaged, or cannot be read or written.
        """
        if not _NAME.fullmatch(name):
            raise TokenError(f"{name!r} cannot name a token; a name has 1 to 64 letters, digits, '.', '_' and '-'")
        token = PREFIX + secrets.token_urlsafe(32)
        issued = IssuedToken(name, hashlib.sha256(token.encode()).digest(), self._clock())

        def with_token(tokens: tuple[IssuedToken, ...]) -> tuple[IssuedToken, ...]:
            if any(name == other.name for other in tokens):
                raise TokenError(f"there is a token named {name!r} already; choose another name, or revoke it first")
            return (*tokens, issued)

        self._change(with_token)
        return token

    def revoke(self, name: str) -> None:
        """
        Forget a token.

        Raises:
            TokenError: There is none of that name.
            ProblemsError: The file is damaged, or cannot be read or written.
        """

        def without_token(tokens: tuple[IssuedToken, ...]) -> tuple[IssuedToken, ...]:
            rest = tuple(token for token in tokens if token.name != name)
            if rest == tokens:
                raise TokenError(f"there is no token named {name!r}")
            return rest

        self._change(without_token)

    def _change(self, change: Callable[[tuple[IssuedToken, ...]], tuple[IssuedToken, ...]]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_name(f"{self.path.name}.lock")):
                # Not from memory: another process may have changed the file, and a damaged one must not be lost.
                content = self._read()
                tokens = change(() if content is None else self._parse(content))
                write_private(self.path, _encode(tokens))
                self.reload()
        except OSError as error:
            raise self._problem(f"a file that cannot be written: {_reason(error)}") from error

    def _read(self) -> bytes | str | None:
        """Return the content, None when there is no file, or the reason why it cannot be read."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return _reason(error)

    def _parse(self, content: bytes | str) -> tuple[IssuedToken, ...]:
        if isinstance(content, str):
            raise self._problem(f"a file that cannot be read: {content}")
        try:
            document = json.loads(content)
        except json.JSONDecodeError as error:
            raise self._problem(f"no JSON: {error.msg}", line=error.lineno) from error
        except (UnicodeDecodeError, RecursionError) as error:
            raise self._problem("no JSON") from error
        if not isinstance(document, dict):
            raise self._problem("no mapping")
        if document.get("version") != VERSION:
            raise self._problem(f"version {document.get('version')!r}", f"this program knows version {VERSION}")
        if not isinstance(document.get("tokens"), list):
            raise self._problem("no list of tokens")
        tokens: dict[str, IssuedToken] = {}
        problems: list[Problem] = []
        for index, item in enumerate(document["tokens"]):
            token = _decode(item)
            if token is None or token.name in tokens:
                found = "an item that is damaged" if token is None else f"a second token named {token.name!r}"
                problems.append(Problem(str(self.path), 0, f"tokens[{index}]", found, EXPECTED))
            else:
                tokens[token.name] = token
        if problems:
            raise ProblemsError(problems)
        return tuple(tokens.values())

    def _problem(self, found: str, hint: str = "", line: int = 0) -> ProblemsError:
        return ProblemsError([Problem(str(self.path), line, "", found, EXPECTED, hint)])


def _encode(tokens: tuple[IssuedToken, ...]) -> bytes:
    items = [
        {
            "name": token.name,
            "sha256": token.digest.hex(),
            "created_at": token.created_at.isoformat(timespec="seconds"),
        }
        for token in tokens
    ]
    return (json.dumps({"version": VERSION, "tokens": items}, indent=2) + "\n").encode()


def _decode(item: Any) -> IssuedToken | None:
    match item:
        case {"name": str(name), "sha256": str(digest), "created_at": str(created_at), **rest} if not rest:
            if not _NAME.fullmatch(name) or not _DIGEST.fullmatch(digest):
                return None
            try:
                created = datetime.fromisoformat(created_at)
            except ValueError:
                return None
            return IssuedToken(name, bytes.fromhex(digest), created.astimezone(UTC)) if created.tzinfo else None
        case _:
            return None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

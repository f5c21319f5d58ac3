"""
Who may send: tokens and logins, compared in constant time, and what AUTH carries.

Of every secret only its SHA-256 digest is kept here, so neither a memory dump nor a traceback shows one.

Trust: whatever is checked comes from a client that is not known yet.
Source: RFC 4616 (PLAIN), RFC 4954 (AUTH).
"""

import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Literal

from attrs import field, frozen

from proxy import settings
from proxy.inbound.tokens import TokenStore

LoginKind = Literal["token", "login", "issued"]

_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


@frozen
class Login:
    """
    Who logged in.

    Args:
        name: What logs and metrics call the holder.
        provider: The provider whose fields count first; None for no preference.
        discard: Whether the messages are accepted and not sent.
        kind: ``token`` and ``login`` stand in the settings, ``issued`` is from ``cmail-proxy token add``.
    """

    name: str
    provider: str | None
    discard: bool
    kind: LoginKind


@frozen
class _Candidate:
    """What must be given for a login, as SHA-256 digests; None where any user name will do."""

    login: Login
    username: bytes | None = field(repr=False)
    password: bytes = field(repr=False)


class Credentials:
    """
    All that a client may log in with.

    Args:
        store: Issued tokens. It is asked on every check, so whoever reloads it needs to tell nobody.
    """

    def __init__(
        self, tokens: Iterable[settings.Token], logins: Iterable[settings.Login], store: TokenStore | None = None
    ) -> None:
        self._store = store
        self._candidates = (
            *(_token(Login(token.name, None, False, "token"), _digest(_octets(token.token))) for token in tokens),
            *(
                _Candidate(
                    Login(login.name, login.provider, login.discard, "login"),
                    None if login.username is None else _digest(login.username.encode("utf-8", "surrogatepass")),
                    _digest(_octets(login.password)),
                )
                for login in logins
            ),
        )

    def check(self, username: bytes, password: bytes) -> Login | None:
        """
        Find whose user name and password these are.

        A token is both user name and password. Every candidate is compared, whatever the result of those before, so the
        time taken does not tell which one was close.

        Args:
            username, password: As the client sent them, in UTF-8.

        Returns:
            The first that fits, or None.
        """
        given_username, given_password = _digest(username), _digest(password)
        found: Login | None = None
        for candidate in (*self._candidates, *self._issued()):
            wanted = given_username if candidate.username is None else candidate.username
            fits = hmac.compare_digest(given_username, wanted) & hmac.compare_digest(given_password, candidate.password)
            if fits and found is None:
                found = candidate.login
        return found

    def names_of(self, username: bytes) -> tuple[str, ...]:
        """The logins that have this user name: what to tell an operator of a wrong password."""
        given = _digest(username)
        return tuple(
            candidate.login.name
            for candidate in self._candidates
            if candidate.login.kind == "login"
            and candidate.username is not None
            and hmac.compare_digest(given, candidate.username)
        )

    def _issued(self) -> Iterable[_Candidate]:
        digests = self._store.digests() if self._store else ()
        return (_token(Login(name, None, False, "issued"), digest) for name, digest in digests)


def _token(login: Login, digest: bytes) -> _Candidate:
    return _Candidate(login, digest, digest)


def _octets(secret: settings.Secret) -> bytes:
    return secret.reveal().encode("utf-8", "surrogatepass")


def _digest(octets: bytes) -> bytes:
    return hashlib.sha256(octets).digest()


def decode_base64(text: bytes) -> bytes | None:
    """
    Decode what a client sent after AUTH or a 334.

    Returns:
        The octets; None for anything outside the alphabet (blanks too) or wrong padding. A lone ``=``, which stands for
        an empty initial response, is for the caller to see.

    Source: RFC 4648, 4; RFC 4954, 4.
    """
    # The module's own check lets padding pass that is too much, and not the same in every version.
    return binascii.a2b_base64(text) if _BASE64.fullmatch(text) else None


def decode_plain(blob: bytes) -> tuple[bytes, bytes] | None:
    """
    Take a PLAIN response apart.

    The authorization identity may be anything: clients put the user name there, or nothing, and who logs in here acts
    for nobody else. An empty user name is taken too, because some old providers look only at the password.

    Returns:
        User name and password; None unless there are three parts, all in UTF-8.

    Source: RFC 4616, 2.
    """
    try:
        blob.decode()
    except UnicodeDecodeError:
        return None
    parts = blob.split(b"\0")
    return (parts[1], parts[2]) if len(parts) == 3 else None


def fingerprint(secret: bytes, key: bytes) -> str:
    """
    Name a secret in logs, so that two attempts with the same one can be seen to be that.

    Args:
        key: Known to this installation only; without it, short secrets could be found by trying them.

    Returns:
        8 hexadecimal characters.
    """
    return hmac.digest(key, secret, "sha256")[:4].hex()

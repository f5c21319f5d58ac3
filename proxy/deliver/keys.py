"""
The keys that sign tracking links and mail, read again when their files change.

The content of the files counts, so it does not matter whether one was written anew or a link in its path was turned.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from proxy.compose.dkim import Signer, SigningKey, load_key
from proxy.compose.tokens import EXPECTED, TokenKeys, load_or_create_secret
from proxy.problems import Problem, ProblemsError
from proxy.settings import Settings


def tracking_keys(settings: Settings) -> Path:
    """Where the keys are that sign tracking links."""
    return settings.tracking.secret_file or settings.data_dir / "tracking-keys"


class Keys:
    """
    The keys in force. Those for tracking links are made where there are none, at the start.

    Attributes:
        tokens: Sign tracking links.
        signer: Signs messages with DKIM; None where no key is set.

    Raises:
        ProblemsError: Some cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._tracking = tracking_keys(settings)
        self._dkim = settings.deliver.dkim
        load_or_create_secret(self._tracking)
        self._seen = self._look()  # before they are read for good: a change behind that is seen by the next look
        self.tokens: TokenKeys = load_or_create_secret(self._tracking)
        self.signer = self._signer()

    def reload(self) -> bool:
        """
        Take changed files into force; what is on its way with the old keys stays as it is.

        Returns:
            Whether anything changed.

        Raises:
            ProblemsError: A file is gone or damaged. The old keys stay in force, all of them, until the files change
                again: links that are in mail already must keep working.
        """
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        if not self._tracking.is_file():  # to make new ones now would end all links that were signed
            raise ProblemsError([Problem(str(self._tracking), 0, "", "no file", EXPECTED, "put it back")])
        tokens, signer = load_or_create_secret(self._tracking), self._signer()
        self.tokens, self.signer = tokens, signer
        return True

    def _signer(self) -> Signer | None:
        keys = [
            SigningKey(each.domain, each.selector, load_key(each.key_file, f"deliver.dkim[{index}].key_file"))
            for index, each in enumerate(self._dkim)
        ]
        return Signer(keys) if keys else None

    def _look(self) -> Sequence[bytes]:
        return [_digest(path) for path in (self._tracking, *[each.key_file for each in self._dkim])]


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""

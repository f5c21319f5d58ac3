"""dkimpy, the verifier that is not ours. Import it from here: who imports it first decides whether it knows Ed25519."""

import importlib
import sys
from base64 import b64decode
from types import ModuleType
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class _BadSignatureError(Exception):
    """What PyNaCl raises, in the stand-in below."""


class _VerifyKey:
    """PyNaCl's ``VerifyKey`` on cryptography."""

    def __init__(self, key: bytes, encoder: object = None) -> None:
        self._key = Ed25519PublicKey.from_public_bytes(b64decode(key))

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check, as PyNaCl does."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature as error:
            raise _BadSignatureError from error


def _oracle() -> ModuleType:
    """
    Load dkimpy.

    It reads Ed25519 with PyNaCl, which the tests do not otherwise need: canonicalisation and digest stay dkimpy's own,
    and only the arithmetic comes from cryptography. The example of RFC 8463 shows that this works.
    """
    names = ("nacl", "nacl.signing", "nacl.encoding", "nacl.exceptions")
    stand_ins = {name: ModuleType(name) for name in names}
    vars(stand_ins["nacl.signing"])["VerifyKey"] = _VerifyKey
    vars(stand_ins["nacl.encoding"])["Base64Encoder"] = object()
    vars(stand_ins["nacl.exceptions"]).update(BadSignatureError=_BadSignatureError, ValueError=ValueError)
    vars(stand_ins["nacl"]).update({name.partition(".")[2]: stand_ins[name] for name in names[1:]})
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stand_ins.items():
            patch.setitem(sys.modules, name, module)
        return importlib.import_module("dkim")


dkimpy: Any = _oracle()

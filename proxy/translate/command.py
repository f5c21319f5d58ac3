"""One whole message through the engine, without SMTP: for ``translate`` and the fixtures."""

from collections.abc import Sequence
from email.utils import getaddresses

from attrs import frozen

from proxy.mail import encoded_words
from proxy.mail.data_stage import mend_line_ends
from proxy.mail.envelope import Envelope
from proxy.mail.fields import HeaderSection
from proxy.translate.engine import Engine
from proxy.translate.explain import explain
from proxy.translate.model import Action

_MAX_RECIPIENT_OCTETS = 65_536


@frozen
class Translated:
    """
    What became of a message.

    Args:
        message: As it would be sent on, without our Received field; line ends as in the input.
        explanation: What was set by which rule, and what was lost.
        refused: Why it would be refused; empty where it would not.
        discarded: Why it would be answered with 250 and not sent; empty where it would be.
    """

    message: bytes
    explanation: str
    refused: str
    discarded: str


def translate_octets(message: bytes, engine: Engine, recipients: Sequence[str] = (), provider: str = "") -> Translated:
    """
    Translate one message.

    Args:
        message: The message; a file with bare LF as line end keeps it.
        recipients: The envelope's; empty: those of To, Cc and Bcc.
        provider: The provider of the login or listener; empty for none.
    """
    mended = mend_line_ends(message)
    section = HeaderSection.split(mended)
    envelope = Envelope("", tuple(recipients) or _recipients(section))
    translation = engine.translate(section, envelope, provider)
    head = mended[: section.end] if translation.section is None else translation.section
    output = head + mended[section.end :]
    if b"\r\n" not in message:
        output = output.replace(b"\r\n", b"\n")
    explanation = explain(translation)
    if not len(section):
        what = "this does not begin with a header section" if mended.strip() else "there is nothing"
        explanation += f"remark     no_header: {what}, so no field was looked at\n"
    refused = translation.reason if translation.action is Action.REFUSE else ""
    discarded = translation.reason if translation.action is Action.DISCARD else ""
    return Translated(output, explanation, refused, discarded)


def _recipients(section: HeaderSection) -> tuple[str, ...]:
    values = [encoded_words.decode(field.value) for field in section if field.name.lower() in ("to", "cc", "bcc")]
    shortened = [value[:_MAX_RECIPIENT_OCTETS] for value in values]  # the parser is slow on what no client sends
    try:
        return tuple(address for _, address in getaddresses(shortened) if address)
    except RecursionError:  # thousands of nested comments
        return ()

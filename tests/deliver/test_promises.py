"""
The platform's promises, P1 to P10: over real SMTP, by what was delivered.

Longer than other modules: the promises are read, and held against the list, in one place.
"""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deliver.site import (
    LISTENER,
    QUEUED,
    Copy,
    DeliverSite,
    both_message,
    client_reply,
    html_message,
    message,
    send,
    site,
)
from tests.operation.program import run, write_settings
from tests.smtp_in.dialogue import START_MAIL, Client, base64_of, plain, trusting

TOKEN = "promises-token-0123456789abcdef"
OPEN, GUARDED, IMPLICIT, AUTO = range(4)
TLS_CLIENT_HELLO = b"\x16\x03\x01"

TARGET = "https://shop.example/orders?id=7&view=full#top"
HTML = (
    b"<!DOCTYPE html>\r\n<html><head><style>p.note { color: #c00; }</style></head>\r\n<body>\r\n"
    b'<p class="note">Hello <a href="https://shop.example/orders?id=7&amp;view=full#top">your order</a></p>\r\n'
    b'<p><a href="mailto:help@example.com">Help</a> <a href="#top">Up</a></p>\r\n</body></html>\r\n'
)
LINK = b"https://shop.example/orders?id=7&amp;view=full#top"
NOTE = b'<p class="note">'
STYLED = b'<p style="color: #c00" class="note">'
TEXT = f"Hello your order ({TARGET})\n\nHelp (mailto:help@example.com) Up\n"

WORDS = [
    pytest.param(None, True, id="absent"),
    pytest.param(b"true", True, id="true"),
    pytest.param(b"false", False, id="false"),
    pytest.param(b"TRUE", True, id="in-capitals"),
    pytest.param(b" False ", False, id="with-blanks"),
    pytest.param(b"1", True, id="1"),
    pytest.param(b"0", False, id="0"),
    pytest.param(b"=?utf-8?q?false?=", False, id="encoded"),
    pytest.param(b"", True, id="empty"),
    pytest.param(b"perhaps", True, id="malformed"),
    pytest.param(b"false, really", True, id="malformed-with-a-word-in-it"),
    pytest.param(b"falsch \xff", True, id="malformed-octets"),
]
"""The value of a switch, and whether it is on by that. What is no switch word leaves the platform's default: on."""

MALFORMED = (b"perhaps", b"false, really", b"falsch \xff")
USUAL = b"Date: x\r\nMessage-ID: <x>\r\n"
SWITCHES = (b"X-Cmail-TrackOpens", b"X-Cmail-TrackClicks", b"X-Cmail-InlineCSS")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeliverSite]:
    """A proxy with a listener of each kind."""
    guarded = {**LISTENER, "auth": "required", "auth_without_tls": "never"}
    with site(
        tmp_path_factory.mktemp("promises"),
        listeners=[LISTENER, guarded, {**LISTENER, "tls": "implicit"}, {**LISTENER, "tls": "auto"}],
        tls={"self_signed": True},
        tokens=[{"name": "billing", "token": TOKEN}],
    ) as running:
        yield running


# P1


def test_p1_the_four_ports_are_ports_like_any_other(tmp_path: Path) -> None:
    """587, 25, 465 and 2525 may be listened on, all in one program, with TLS on each."""
    listener = {"address": "127.0.0.1", "auth": "none"}
    ports = ((587, "starttls"), (25, "starttls"), (465, "auto"), (2525, "starttls"))
    listeners = [{**listener, "port": port, "tls": tls} for port, tls in ports]
    config = write_settings(tmp_path / "settings.yaml", {"tls": {"self_signed": True}, "listeners": listeners})
    done = run("check", "--config", config)
    assert done.returncode == 0, done
    where = ", ".join(f"127.0.0.1:{port} ({tls})" for port, tls in ports)
    assert f"; listening on {where}; delivering to the mailbox {tmp_path}/var/mailbox\n" in done.stdout.decode()


def test_p1_starttls_is_offered_and_mail_goes_through_it(here: DeliverSite) -> None:
    """A listener that speaks plain SMTP offers STARTTLS, and what is sent behind it is delivered."""
    with here.client(OPEN, extended=False) as client:
        assert "STARTTLS" in client.ehlo()
        assert client.say("STARTTLS") == "220 2.0.0 Ready to start TLS"
        client.start_tls(trusting())
        assert "STARTTLS" not in client.ehlo()
        copy = here.only(send(client, message()))
    assert b" with ESMTPS id " in copy.received
    assert copy.content == message()


def test_p1_implicit_tls_where_a_listener_is_set_to_it(here: DeliverSite) -> None:
    """A listener set to implicit TLS, as port 465 was, begins with the handshake; who speaks plainly is not greeted."""
    with here.client(IMPLICIT, context=trusting()) as client:
        copy = here.only(send(client, message()))
    assert b" with ESMTPS id " in copy.received
    with socket.create_connection(("127.0.0.1", here.proxy.ports[IMPLICIT]), timeout=20) as plainly:
        plainly.sendall(b"EHLO app.example.com\r\n")
        assert not plainly.recv(1000).startswith(b"220")


def test_p1_implicit_tls_is_off_by_default(here: DeliverSite) -> None:
    """A listener that is not told otherwise greets in clear, and takes a TLS handshake for a command that is none."""
    with here.client(OPEN) as client:
        client.send(TLS_CLIENT_HELLO + b"\0\0\r\n")
        assert client.reply().startswith("500 ")


def test_p1_auto_takes_both_by_the_first_octets(here: DeliverSite) -> None:
    """A listener set to auto serves apps that begin with TLS, and apps that wait for the greeting."""
    with here.client(AUTO, context=trusting()) as client:
        assert b" with ESMTPS id " in here.only(send(client, message())).received
    with here.client(AUTO, extended=False) as client:
        assert "STARTTLS" in client.ehlo()
        assert b" with ESMTP id " in here.only(send(client, message())).received


# P2


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_p2_a_token_is_user_name_and_password(here: DeliverSite, mechanism: str) -> None:
    """Who gives a valid token as both may send, by either mechanism; the message is filed under the token's name."""
    with here.client(GUARDED) as client:
        client.say("STARTTLS")
        client.start_tls(trusting())
        client.ehlo()
        if mechanism == "PLAIN":
            reply = client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}")
        else:
            assert client.say("AUTH LOGIN") == "334 VXNlcm5hbWU6"
            assert client.say(base64_of(TOKEN)) == "334 UGFzc3dvcmQ6"
            reply = client.say(base64_of(TOKEN))
        assert reply == "235 2.7.0 Authentication succeeded"
        copy = here.only(send(client, message()))
    assert b" with ESMTPSA id " in copy.received
    assert here.told("message", "show", copy.id)["item"]["login"] == "billing"
    assert TOKEN.encode() not in here.proxy.log_file.read_bytes()


def test_p2_anything_else_is_refused(here: DeliverSite) -> None:
    """A wrong token, or a right one beside a wrong one, opens nothing; nor does silence."""
    before = len(here.copies())
    with here.client(GUARDED) as client:
        assert client.say("MAIL FROM:<app@example.com>").startswith("530 ")
        assert client.say(f"AUTH PLAIN {plain(TOKEN, TOKEN)}").startswith("538 ")  # not in clear on this listener
        client.say("STARTTLS")
        client.start_tls(trusting())
        client.ehlo()
        for username, password in ((TOKEN, "wrong"), ("wrong", TOKEN)):
            assert client.say(f"AUTH PLAIN {plain(username, password)}") == "535 5.7.8 Credentials not accepted"
        assert client.say("MAIL FROM:<app@example.com>") == "530 5.7.0 Authentication required"
    assert len(here.copies()) == before


# P3


def crowd(count: int) -> list[str]:
    """So many recipients."""
    return [f"reader{number}@example.net" for number in range(1, count + 1)]


def crowded(recipients: list[str]) -> bytes:
    """A message that names its recipients in To, Cc and Bcc, folded, in three parts."""
    third = len(recipients) // 3
    parts = (recipients[:third], recipients[third : 2 * third], recipients[2 * third :])
    fields = [
        name + b": " + ",\r\n ".join(part).encode() for name, part in zip((b"To", b"Cc", b"bCC"), parts, strict=True)
    ]
    return b"\r\n".join([b"From: app@example.com", *fields, b"Subject: Hello"]) + b"\r\n\r\nHello\r\n"


def test_p3_25_recipients_over_to_cc_and_bcc(here: DeliverSite) -> None:
    """25 recipients each get the message; who is in Bcc is not shown to anybody."""
    recipients = crowd(25)
    found = here.delivered(here.send(crowded(recipients), *recipients), 25)
    assert sorted(found) == sorted(recipients)
    (content,) = {copy.content for copy in found.values()}
    assert Copy("", "", (), b"", content, 0).names == ["from", "to", "cc", "subject", "date", "message-id"]
    assert content.count(b"@example.net") == 16


def test_p3_26_recipients_are_refused_and_nobody_gets_it(here: DeliverSite) -> None:
    """One more than 25 is refused as a whole, because half a send is worse; the next message goes through."""
    with here.client(OPEN) as client:
        assert client.say("MAIL FROM:<app@example.com>") == "250 2.1.0 OK"
        for recipient in crowd(26):
            assert client.say(f"RCPT TO:<{recipient}>") == "250 2.1.5 OK"
        assert client.say("DATA") == "550 5.5.3 26 recipients; at most 25 are possible, so nothing was sent"
        after = send(client, message(), "after@example.net")
    here.only(after)
    assert not [copy for copy in here.copies() if "reader26@example.net" in copy.recipients]


def test_p3_the_envelope_counts_and_not_the_fields(here: DeliverSite) -> None:
    """A message that names 40 people and goes to one of them is no mass mailing; 26 who are not named are one."""
    assert here.only(here.send(crowded(crowd(40)), "reader1@example.net")).recipients == ("reader1@example.net",)
    with here.client(OPEN) as client:
        client.say("MAIL FROM:<app@example.com>")
        for recipient in crowd(26):
            client.say(f"RCPT TO:<{recipient}>")
        assert client.say("DATA").startswith("550 5.5.3 26 recipients;")


def test_p3_excess_may_be_put_off_instead(tmp_path: Path) -> None:
    """With limits.excess: defer the 26th hears 452, and the first 25 get it."""
    with site(tmp_path, limits={"excess": "defer"}) as deferring, deferring.client() as client:
        client.say("MAIL FROM:<app@example.com>")
        replies = [client.say(f"RCPT TO:<{recipient}>") for recipient in crowd(26)]
        assert replies == ["250 2.1.5 OK"] * 25 + ["452 4.5.3 Too many recipients"]
        assert client.say("DATA") == START_MAIL
        client.send(message() + b".\r\n")
        queued = QUEUED.fullmatch(client.reply())
        assert queued is not None
        assert sorted(deferring.delivered(queued[1], 25)) == sorted(crowd(25))


def test_p3_a_recipient_named_twice_gets_it_once(here: DeliverSite) -> None:
    """Apps that name somebody in To and in Cc mean one person, in whatever case the domain is written."""
    twice = ("ann@example.net", "bob@example.net", "ann@example.net", "ann@Example.NET", "Ann@example.net")
    copies = here.delivered(here.send(message(), *twice), 3)
    assert sorted(copies) == ["Ann@example.net", "ann@example.net", "bob@example.net"]


# P4

NAMES = [
    pytest.param(b"Jane Smith <jane@example.com>", id="words"),
    pytest.param(b'"Smith, Jane (Sales) \\"JS\\"" <jane@example.com>', id="quoted"),
    pytest.param(b"=?utf-8?Q?J=C3=B6rg_M=C3=BCller?= <jane@example.com>", id="q-encoded"),
    pytest.param(b"=?ISO-2022-JP?B?GyRCOzNFREJATzobKEI=?= <jane@example.com>", id="iso-2022-jp"),
    pytest.param(b"=?windows-1251?B?yOLg7Q==?=\r\n\t=?windows-1251?B?yOLg7Q==?= <jane@example.com>", id="folded"),
    pytest.param("Jörg Müller <jane@example.com>".encode(), id="raw-utf-8"),
    pytest.param("山田太郎 <jane@example.com>".encode(), id="raw-utf-8-of-three-octets"),
    pytest.param("Jörg Müller <jane@example.com>".encode("latin-1"), id="raw-latin-1"),
    pytest.param(b"=?x-unknown?Q?Jane?= <jane@example.com>", id="unknown-charset"),
    pytest.param(b"  odd   blanks  <jane@example.com>  ", id="odd-blanks"),
    pytest.param(b"jane@example.com (Jane Smith)", id="comment"),
]


@pytest.mark.parametrize("name", NAMES)
def test_p4_display_names_are_delivered_byte_for_byte(here: DeliverSite, name: bytes) -> None:
    """From and To keep the display name as the app wrote it, in whatever charset."""
    sent = (
        b"From: "
        + name
        + b"\r\nTo:"
        + name
        + b",\r\n  "
        + name
        + b"\r\nSubject: x\r\nDate: y\r\nMessage-ID: <z>\r\n\r\nx\r\n"
    )
    assert here.only(here.send(sent)).content == sent
    html = sent.replace(b"\r\n\r\nx", b"\r\nContent-Type: text/html\r\n\r\n" + HTML)
    assert here.only(here.send(html)).head.startswith(sent[: sent.index(b"\r\n\r\n")])


def test_p4_utf_8_addresses_with_smtputf8(here: DeliverSite) -> None:
    """Names and addresses that are UTF-8 themselves go through where SMTPUTF8 was asked for."""
    sent = message().replace(b"App <app@example.com>", "Jörg <jörg@bücher.example>".encode())
    with here.client(OPEN) as client:
        assert "SMTPUTF8" in client.ehlo()
        assert client.say("MAIL FROM:<jörg@bücher.example> SMTPUTF8 BODY=8BITMIME").startswith("250 ")
        assert client.say("RCPT TO:<δοκιμή@παράδειγμα.example>").startswith("250 ")
        client.say("DATA")
        client.send(sent + b".\r\n")
        queued = QUEUED.fullmatch(client.reply())
    assert queued is not None
    copy = here.only(queued[1])
    assert (copy.reverse_path, copy.recipients) == ("jörg@bücher.example", ("δοκιμή@παράδειγμα.example",))
    assert copy.content == sent


# P5

OFF = tuple(name + b": false" for name in SWITCHES)


def test_p5_html_alone_gets_a_text_part(here: DeliverSite) -> None:
    """A message with HTML and no text becomes multipart/alternative: the text first, the HTML as it was."""
    copy = here.only(here.send(html_message(HTML, *OFF)))
    assert copy.mail.get_content_type() == "multipart/alternative"
    text, html = copy.mail.iter_parts()
    assert (text.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    assert copy.text.replace("\r\n", "\n") == TEXT
    assert copy.html == HTML
    usual = ["from", "to", "subject", "date", "message-id"]
    assert copy.names == ["mime-version", "content-type", "content-transfer-encoding", *usual]


def test_p5_a_text_that_is_there_stays(here: DeliverSite) -> None:
    """Where the app wrote a text, nothing is made, and nothing of it changes."""
    sent = both_message(HTML, "Grüße,\r\n.dotted\r\n".encode())
    copy = here.only(here.send(sent, *()))
    assert copy.text.encode() == "Grüße,\r\n.dotted\r\n".encode()
    assert [part.get_content_type() for part in copy.mail.walk()] == [
        "multipart/alternative",
        "text/plain",
        "text/html",
    ]


def test_p5_inside_mixed_and_related(here: DeliverSite) -> None:
    """The text goes beside the HTML, not beside its pictures or the attached file, which keep their bytes."""
    related = (
        b'--r\r\nContent-Type: text/html; charset="utf-8"\r\n\r\n' + HTML + b"\r\n"
        b"--r\r\nContent-Type: image/png\r\nContent-ID: <logo>\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        b"iVBORw0KGgo=\r\n--r--\r\n"
    )
    body = (
        b'--m\r\nContent-Type: multipart/related; boundary="r"\r\n\r\n' + related + b"\r\n"
        b"--m\r\nContent-Type: text/csv\r\nContent-Disposition: attachment; filename=a.csv\r\n\r\na,b\r\n--m--\r\n"
    )
    fields = (b"MIME-Version: 1.0", b"Content-Type: multipart/mixed; boundary=m", *OFF)
    copy = here.only(here.send(message(*fields, body=body)))
    kinds = [part.get_content_type() for part in copy.mail.walk()]
    assert kinds == [
        *("multipart/mixed", "multipart/alternative", "text/plain", "multipart/related", "text/html"),
        *("image/png", "text/csv"),
    ]
    assert copy.text.replace("\r\n", "\n") == TEXT
    assert related.removesuffix(b"--\r\n") in copy.content


@pytest.mark.parametrize(
    "sent",
    [
        message(
            b"MIME-Version: 1.0",
            b'Content-Type: multipart/signed; boundary=s; protocol="application/pgp-signature"; micalg=pgp-sha256',
            body=b"--s\r\nContent-Type: text/html\r\n\r\n"
            + HTML
            + b"\r\n--s\r\nContent-Type: application/pgp-signature"
            b"\r\n\r\nx\r\n--s--\r\n",
        ),
        message(b"MIME-Version: 1.0", b"Content-Type: application/pkcs7-mime", body=HTML),
    ],
    ids=["signed", "encrypted"],
)
def test_p5_what_is_signed_or_encrypted_is_never_touched(here: DeliverSite, sent: bytes) -> None:
    """A text part, a beacon or a rewritten link would break the signature."""
    assert here.only(here.send(sent)).content == sent


# P6


def test_p6_group_name_files_the_message(here: DeliverSite) -> None:
    """X-Cmail-GroupName names the group in the report; a name of any script, encoded as fields are."""
    for _ in range(2):
        here.delivered(here.send(message(b"X-Cmail-GroupName: P6 orders"), "ann@example.net", "bob@example.net"), 2)
    copy = here.only(here.send(message(b"X-Cmail-GroupName: =?utf-8?B?UDYgQmVzdMOkdGlndW5n?=")))
    here.wait_for_figures("P6 orders", received=2, sent=4, delivered=4)
    here.wait_for_figures("P6 Bestätigung", received=1, sent=1, delivered=1)
    assert copy.content == message()
    assert here.told("message", "show", copy.id)["item"]["group"] == "P6 Bestätigung"


@pytest.mark.parametrize(
    "field", [(), (b"X-Cmail-GroupName:",), (b"X-Cmail-GroupName:   ",)], ids=["absent", "empty", "blank"]
)
def test_p6_without_a_group_it_is_ungrouped(here: DeliverSite, field: tuple[bytes, ...]) -> None:
    """Messages without a group are reported under "Ungrouped emails"."""
    before = here.figures("Ungrouped emails").get("received", 0)
    here.only(here.send(message(*field)))
    here.wait_for_figures("Ungrouped emails", received=before + 1)


# P7

GROUPS = [
    pytest.param("P7 mailgun", [b"X-Mailgun-Tag: P7 mailgun", b"X-Mailgun-Tag: second"], id="mailgun"),
    pytest.param("P7 mailjet", [b"X-Mailjet-Campaign: P7 mailjet"], id="mailjet"),
    pytest.param("P7 mandrill", [b"X-MC-Tags: P7 mandrill,second, third"], id="mandrill"),
    pytest.param("P7 postmark", [b"X-PM-Tag: P7 postmark"], id="postmark"),
    pytest.param("P7 sendgrid", [b'X-SMTPAPI: {"category": ["P7 sendgrid", "second"]}'], id="sendgrid"),
    pytest.param("P7 string", [b'X-SMTPAPI: {"category": "P7 string"}'], id="sendgrid-string"),
    pytest.param("P7 first", [b"X-PM-Tag: P7 first", b"X-MC-Tags: other"], id="two-providers"),
    pytest.param("P7 twice", [b"X-Cmail-GroupName: P7 twice", b"X-Cmail-GroupName: other"], id="native-twice"),
    pytest.param("P7 native", [b"X-MC-Tags: other", b"X-Cmail-GroupName: P7 native"], id="native-beside"),
    pytest.param("P7 not empty", [b"X-Cmail-GroupName:", b"X-Cmail-GroupName: P7 not empty"], id="native-empty-first"),
]


@pytest.mark.parametrize(("group", "fields"), GROUPS)
def test_p7_group_fields_of_the_five_providers(here: DeliverSite, group: str, fields: list[bytes]) -> None:
    """Each provider's own group field files the message, the first of several counts, and none reaches the reader."""
    copy = here.only(here.send(message(*fields)))
    here.wait_for_figures(group, received=1, delivered=1)
    assert copy.content == message()


# P8 to P10


def switched(switch: bytes, value: bytes | None) -> list[bytes]:
    """Fields that set one switch to a value, or say nothing of it, and switch the two others off."""
    others = [name + b": false" for name in SWITCHES if name != switch]
    return others if value is None else [*others, switch + b":" + value]


def sent_with(here: DeliverSite, switch: bytes, value: bytes | None) -> Copy:
    """Send HTML with such a switch, and check what no switch changes: the text, the other fields, and what is told."""
    copy = here.only(here.send(html_message(HTML, *switched(switch, value))))
    assert copy.text.replace("\r\n", "\n") == TEXT
    assert not [name for name in copy.names if name.startswith("x-cmail")]
    told = here.logged("malformed_field", copy.id, int(value in MALFORMED))
    assert [each["fields"] for each in told] == ([[switch.decode()]] if value in MALFORMED else [])
    return copy


@pytest.mark.parametrize(("value", "on"), WORDS)
def test_p8_track_opens(here: DeliverSite, value: bytes | None, on: bool) -> None:
    """X-Cmail-TrackOpens puts one beacon before the end of the body; it is on unless the app says no."""
    copy = sent_with(here, b"X-Cmail-TrackOpens", value)
    assert copy.untracked == (HTML.replace(b"</body>", b"BEACON</body>") if on else HTML)
    assert len(copy.beacons) == on


@pytest.mark.parametrize(("value", "on"), WORDS)
def test_p9_track_clicks(here: DeliverSite, value: bytes | None, on: bool) -> None:
    """X-Cmail-TrackClicks makes web links lead through us, and no others; it is on unless the app says no."""
    copy = sent_with(here, b"X-Cmail-TrackClicks", value)
    assert copy.untracked == (HTML.replace(LINK, b"CLICK") if on else HTML)
    for url in copy.clicks:
        answer = here.get(url)
        assert (answer.status, answer.fields["location"], answer.body) == (302, TARGET, b"")


@pytest.mark.parametrize(("value", "on"), WORDS)
def test_p10_inline_css(here: DeliverSite, value: bytes | None, on: bool) -> None:
    """X-Cmail-InlineCSS copies style sheets into style attributes; it is on unless the app says no."""
    copy = sent_with(here, b"X-Cmail-InlineCSS", value)
    assert copy.html == (HTML.replace(NOTE, STYLED) if on else HTML)


def test_p8_p9_p10_malformed_switches_are_counted(here: DeliverSite) -> None:
    """What is no switch word is counted by field, and logged with the id of the message."""
    before = [here.proxy.metric("cmail_proxy_malformed_fields_total", field=name.decode()) for name in SWITCHES]
    here.only(here.send(message(*(name + b": vielleicht" for name in SWITCHES))))
    after = [here.proxy.metric("cmail_proxy_malformed_fields_total", field=name.decode()) for name in SWITCHES]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]


def test_p8_p9_p10_all_absent_is_all_on(here: DeliverSite) -> None:
    """Without any field the platform's defaults hold, all at once; a text that is there stays as it is."""
    wanted = HTML.replace(b"</body>", b"BEACON</body>").replace(LINK, b"CLICK").replace(NOTE, STYLED)
    assert here.only(here.send(html_message(HTML))).untracked == wanted
    copy = here.only(here.send(both_message(HTML, b"Your order: https://shop.example/orders\r\n")))
    assert copy.untracked == wanted
    assert copy.text == "Your order: https://shop.example/orders\r\n"


def test_p8_p9_p10_all_off_leaves_every_byte(here: DeliverSite) -> None:
    """A message with its own text and all three off passes byte for byte."""
    sent = both_message(HTML, b"Hello\r\n")
    assert here.only(here.send(both_message(HTML, b"Hello\r\n", *OFF))).content == sent


def test_p8_opens_are_answered_and_counted(here: DeliverSite) -> None:
    """The beacon is a picture that nobody may keep; readers are counted once, and how often in all."""
    fields = (b"X-Cmail-GroupName: P8 opens", b"X-Cmail-TrackClicks: false")
    found = here.delivered(here.send(html_message(HTML, *fields), "ann@example.net", "bob@example.net"), 2)
    (ann,), (bob,) = found["ann@example.net"].beacons, found["bob@example.net"].beacons
    assert ann != bob
    for url in (ann, ann, bob):
        answer = here.get(url)
        assert (answer.status, answer.fields["content-type"], len(answer.body)) == (200, "image/gif", 43)
        assert "no-store" in answer.fields["cache-control"]
    here.wait_for_figures("P8 opens", opened=2, opened_total=3, clicked=0, clicked_total=0)
    assert here.get(ann[:-1] + ("A" if ann[-1] != "A" else "Q")).status == 404
    history = here.told("message", "show", found["ann@example.net"].id)
    numbers = {each["address"]: each["number"] for each in history["item"]["recipients"]}
    opened = [event["recipient"] for event in history["events"] if event["kind"] == "opened"]
    assert opened == [numbers["ann@example.net"]] * 2 + [numbers["bob@example.net"]]


def test_p9_clicks_lead_on_and_are_counted(here: DeliverSite) -> None:
    """Every reader has links of their own; following one leads to the target, and is counted."""
    fields = (b"X-Cmail-GroupName: P9 clicks", b"X-Cmail-TrackOpens: false")
    found = here.delivered(here.send(html_message(HTML, *fields), "ann@example.net", "bob@example.net"), 2)
    (ann,), (bob,) = found["ann@example.net"].clicks, found["bob@example.net"].clicks
    assert ann != bob
    assert not found["ann@example.net"].beacons
    for url in (ann, bob, bob):
        assert here.get(url).fields["location"] == TARGET
    assert here.get(bob, method="HEAD").fields["location"] == TARGET  # a link checker, which is no reader
    here.wait_for_figures("P9 clicks", opened=0, opened_total=0, clicked=2, clicked_total=3)
    events = here.told("message", "show", found["ann@example.net"].id)["events"]
    assert [event["detail"] for event in events if event["kind"] == "clicked"] == [TARGET] * 3


def test_p8_p9_no_address_is_in_a_token(here: DeliverSite) -> None:
    """What a link shows to whoever sees it says nothing of its reader."""
    copy = here.only(here.send(html_message(HTML), "very-secret-reader@example.net"))
    shown = re.sub(rb"=\r\n", b"", copy.content).lower()
    assert b"secret" not in shown
    assert base64_of("very-secret-reader").rstrip("=").encode().lower()[:-1] not in shown


OPT_OUTS = [
    pytest.param(b"disable-tracking=true", id="mailgun"),
    pytest.param(b'disable-tracking="true"', id="mailgun-quoted"),
    pytest.param(b"mc:disable-tracking", id="mandrill"),
    pytest.param(b"data-pm-no-track", id="postmark"),
    pytest.param(b"clicktracking=off", id="sendgrid"),
    pytest.param(b'CLICKTRACKING="OFF"', id="sendgrid-in-capitals"),
]


@pytest.mark.parametrize("attribute", OPT_OUTS)
def test_p9_links_with_an_opt_out_are_left_alone(here: DeliverSite, attribute: bytes) -> None:
    """What each provider documents to keep one link as it is keeps it so here, on either side of the address."""
    html = (
        b"<body><a "
        + attribute
        + b' href="https://a.example/1">1</a><a href="https://a.example/2" '
        + attribute
        + b">2</a>"
        b'<a href="https://a.example/3">3</a></body>\r\n'
    )
    copy = here.only(here.send(html_message(html, b"X-Cmail-TrackOpens: false")))
    assert copy.untracked == html.replace(b"https://a.example/3", b"CLICK")


def test_p9_links_that_are_no_web_pages_are_left_alone(here: DeliverSite) -> None:
    """Other schemes, anchors, place-holders that nobody filled in, and what is no link at all."""
    html = (
        b'<body><a href="tel:+49123">t</a><a href="sms:1">s</a><a href="ftp://a.example/">f</a>'
        b'<a href="/relative">r</a><a href="https://a.example/{{ code }}">l</a><a href="">e</a><a name="n">n</a>'
        b'<img src="https://a.example/i.png"><link href="https://a.example/s.css"></body>\r\n'
    )
    fields = (b"X-Cmail-TrackOpens: false", b"List-Unsubscribe: <https://a.example/u>")
    copy = here.only(here.send(html_message(html, *fields)))
    assert copy.html == html
    assert b"List-Unsubscribe: <https://a.example/u>\r\n" in copy.content


def test_p8_p9_providers_own_fields_switch_too(here: DeliverSite) -> None:
    """An app that switches tracking off by its provider's field has it off, though the platform's default is on."""
    cases: list[tuple[bytes, int, int]] = [
        (b"X-Mailgun-Track-Opens: no", 0, 1),
        (b"X-Mailgun-Track: no", 0, 0),
        (b"X-Mailjet-TrackClick: 0", 1, 0),
        (b"X-MC-Track: clicks", 0, 1),
        (b"X-PM-TrackLinks: None", 1, 0),
        (b'X-SMTPAPI: {"filters": {"opentrack": {"settings": {"enable": 0}}}}', 0, 1),
    ]
    with here.client(OPEN) as client:
        sent = [send(client, html_message(HTML, field)) for field, _, _ in cases]
    found = [here.only(each) for each in sent]
    assert [(len(copy.beacons), len(copy.clicks)) for copy in found] == [case[1:] for case in cases]


# What no promise may cost


def test_message_without_html_keeps_every_byte(here: DeliverSite) -> None:
    """Odd fields, odd spacing, long lines, dots, eight-bit octets and trailing blanks arrive as they were sent."""
    sent = (
        b"fRoM:App <app@example.com>\r\nX-Odd :  value \r\n\tfolded\t\r\nTo: undisclosed-recipients:;\r\n"
        b"Date:\tMon, 23 Nov 2026 09:00:00 +0000\r\nMESSAGE-ID:<1@x>\r\n"
        b"Content-Type: text/plain; charset=latin-1\r\n\r\n"
        b".\r\n..\r\n.dot\r\n" + "Grüße\r\n".encode("latin-1") + b"x" * 2000 + b"  \r\n\0\r\n\r\n\r\n"
    )
    copy = here.only(here.send(sent))
    assert copy.content == sent
    assert copy.reverse_path == "app@example.com"


def test_date_and_message_id_are_added_where_they_are_missing(here: DeliverSite) -> None:
    """A message without them gets both, behind its other fields; with one of them it gets the other."""
    bare = b"From: app@example.com\r\nSubject: Hello\r\n"
    copy = here.only(here.send(bare + b"\r\nHello\r\n"))
    added = re.fullmatch(re.escape(bare) + rb"Date: ([^\r]+)\r\nMessage-ID: <([^\r>]+)>\r\n\r\nHello\r\n", copy.content)
    assert added is not None, copy.content
    assert added[2].decode() == f"{copy.id}@proxy.example.com"
    assert abs(copy.mail["date"].datetime.timestamp() - copy.at) < 3600  # it is a time of today
    copy = here.only(here.send(bare + b"Date: x\r\n\r\nHello\r\n"))
    assert copy.names == ["from", "subject", "date", "message-id"]
    copy = here.only(here.send(bare + b"Message-id: <x>\r\n\r\nHello\r\n"))
    assert copy.names == ["from", "subject", "message-id", "date"]


@pytest.mark.parametrize("name", [b"Bcc", b"BCC", b"bcc", b"Resent-Bcc"])
def test_bcc_is_removed(here: DeliverSite, name: bytes) -> None:
    """No reader learns of the others in Bcc, however it is written, folded or repeated."""
    hidden = (name + b": hidden@example.net,\r\n  other@example.net", name + b": third@example.net")
    found = here.delivered(here.send(message(*hidden), "ann@example.net", "hidden@example.net"), 2)
    assert {copy.content for copy in found.values()} == {message()}


@pytest.mark.parametrize("body", [b"\r\n.Hello\r\n", b"\r\n\r\n", b". no field, and no blank line\r\nBcc: body\r\n"])
def test_dots_before_header_fields_hide_nothing(here: DeliverSite, body: bytes) -> None:
    """On the way they are doubled, in the header section as in the body; what stands where is known all the same."""
    kept = b".From: app@example.com\r\n.x: 1\r\n", b"Date: x\r\nMessage-ID: <x>\r\n..: 2\r\n"
    gone = b"Bcc: hidden@example.net\r\n", b"X-Cmail-GroupName: dots\r\n"
    copy = here.only(here.send(kept[0] + gone[0] + kept[1] + gone[1] + body))
    assert copy.content == b"".join(kept) + body
    assert here.told("message", "show", copy.id)["item"]["group"] == "dots"


@pytest.mark.parametrize(
    ("wire", "kept"),
    [
        (b"Bcc: one@example.net,\r\n. two@example.net\r\nTo: x\r\n" + USUAL + b"\r\n", b"To: x\r\n" + USUAL + b"\r\n"),
        (b"To: x\r\n. folded\r\nBcc: h\r\n" + USUAL + b"\r\n", b"To: x\r\n folded\r\n" + USUAL + b"\r\n"),
        (USUAL + b".: no field\r\nBcc: body\r\n", USUAL + b": no field\r\nBcc: body\r\n"),
        (USUAL + b".To: x\r\n.Bcc: h\r\n\r\n.dot\r\n", USUAL + b"To: x\r\n\r\ndot\r\n"),
        (USUAL + b". hidden\r\n\r\n", USUAL + b" hidden\r\n\r\n"),
    ],
)
def test_lone_dots_of_a_client_that_doubles_none_go_before_anything_is_read(
    here: DeliverSite, wire: bytes, kept: bytes
) -> None:
    """RFC 5321, 4.5.2: the first dot of a line goes. What the line is shows behind it: a continuation, or no field."""
    with here.client(OPEN) as client:
        client.envelope("ann@example.net")
        client.send(wire + b".\r\n")
        queued = QUEUED.fullmatch(client.reply())
    assert queued is not None
    assert here.only(queued[1]).content == kept


def test_all_x_cmail_fields_are_consumed(here: DeliverSite) -> None:
    """Fields written for a relay tell readers nothing; also those that no version of the platform knows."""
    fields = (b"X-Cmail-GroupName: g", b"x-cmail-trackopens: true", b"X-CMAIL-NEW: 1", b"X-Cmail-InlineCSS:\r\n false")
    assert here.only(here.send(message(*fields))).content == message()


def test_messages_of_one_connection_are_each_their_own(here: DeliverSite) -> None:
    """Nothing of a message, its group or its switches, is left for the next one on the same connection."""
    with here.client(OPEN) as client:
        first = send(client, html_message(HTML, *OFF, b"X-Cmail-GroupName: first"))
        second = send(client, html_message(HTML))
    assert here.only(first).untracked == HTML
    assert len(here.only(second).beacons) == 1
    assert here.told("message", "show", second)["item"]["group"] is None


def test_recipient_without_a_domain_is_taken_into_a_mailbox(here: DeliverSite) -> None:
    """RFC 5321 lets apps write to postmaster alone; a folder has no use for a domain."""
    assert here.only(here.send(message(), "postmaster")).recipients == ("postmaster",)


def test_large_message_is_delivered_whole(here: DeliverSite) -> None:
    """More than is kept in the database or in memory: the content is a file beside it, and arrives the same."""
    sent = message(body=b"".join(b"line %d of a large message\r\n" % number for number in range(100_000)))
    copy = here.only(here.send(sent))
    assert copy.content == sent


def test_reply_names_the_id_that_log_and_received_have(here: DeliverSite) -> None:
    """One id leads from the app's log to ours, to the delivered mail, and to the timeline."""
    with here.client(OPEN) as client:
        reply = client_reply(client, message())
    queued = QUEUED.fullmatch(reply)
    assert queued is not None
    copy = here.only(queued[1])
    assert here.logged("message", copy.id)
    assert [event["kind"] for event in here.told("message", "show", copy.id)["events"]] == ["received", "delivered"]


def test_client_that_breaks_off_leaves_nothing(here: DeliverSite) -> None:
    """Without the final dot there is no message: nothing is kept, and nothing is delivered."""
    before = here.proxy.metric("cmail_proxy_queued_total")
    client: Client = here.client(OPEN)
    client.envelope("gone@example.net")
    client.send(message() + b"half of")
    client.sock.close()
    here.only(here.send(message()))
    assert here.proxy.metric("cmail_proxy_queued_total") == before + 1
    assert not [copy for copy in here.copies() if "gone@example.net" in copy.recipients]

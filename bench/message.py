"""The messages that are sent: a header section with a tag of Mailgun, and a body of the wanted size."""

import quopri

SENDER = "app@example.com"
RECIPIENT = "reader@example.net"
STALLED_RECIPIENT = "stalled@example.net"  # our sink stops reading a message for it for a while

SMALL_OCTETS = 5_000
LARGE_OCTETS = 10_000_000

_FIELDS = (
    ("From", "Example App <app@example.com>"),
    ("To", "A Reader <reader@example.net>"),
    ("Subject", "Your weekly summary of what happened"),
    ("Date", "Mon, 02 Mar 2026 08:15:00 +0000"),
    ("Message-ID", "<20260302081500.4711@app.example.com>"),
    ("MIME-Version", "1.0"),
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Content-Transfer-Encoding", "7bit"),
    ("Reply-To", "help@example.com"),
    ("X-Mailgun-Tag", "weekly-summary"),
    ("List-Unsubscribe", "<mailto:unsubscribe@example.com?subject=unsubscribe>"),
    ("X-Mailer", "example-app 4.2"),
)
_LINE = b"It was a quiet week on the coast, and the numbers below say much the same.\r\n"


def message(octets: int) -> bytes:
    """
    Make a message of about that size.

    Returns:
        With CRLF; one line begins with a dot, which is not doubled yet.
    """
    head = "".join(f"{name}: {value}\r\n" for name, value in _FIELDS).encode("ascii") + b"\r\n.a line with a dot\r\n"
    return head + _LINE * max(1, round((octets - len(head)) / len(_LINE)))


def on_the_wire(content: bytes) -> bytes:
    """Give a message as it goes over SMTP: dots doubled, and the final dot (RFC 5321, 4.5.2)."""
    return content.replace(b"\r\n.", b"\r\n..") + b".\r\n"


def html_message(octets: int, html: str = "") -> bytes:
    """
    Make a message with HTML only, in quoted-printable, as most libraries send it.

    Args:
        octets: Of the HTML, about.
        html: It; otherwise one is made as a template engine would: a table of rows, a style sheet, links.
    """
    fields = [field for field in _FIELDS if not field[0].startswith("Content-")]
    fields += [("Content-Type", "text/html; charset=utf-8"), ("Content-Transfer-Encoding", "quoted-printable")]
    head = "".join(f"{name}: {value}\r\n" for name, value in fields).encode("ascii") + b"\r\n"
    rows: list[str] = []
    while len(_HTML) + sum(map(len, rows)) < octets:
        rows.append(_ROW.format(number=len(rows) + 1))
    lines = (html or _HTML.replace("ROWS", "".join(rows))).splitlines()
    return head + b"\r\n".join(quopri.encodestring(line.encode()).replace(b"\n", b"\r\n") for line in lines)


_HTML = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Your weekly summary</title>
<style>
body { margin: 0; padding: 0; background-color: #f4f4f7; color: #333; font-family: Helvetica, Arial, sans-serif; }
table { border-collapse: collapse; } td { padding: 8px; vertical-align: top; }
.wrapper { width: 100%; background-color: #f4f4f7; } .content { width: 600px; margin: 0 auto; background: #fff; }
h1 { font-size: 22px; line-height: 1.3; margin: 0 0 16px; } h2, h3 { font-size: 16px; margin: 0 0 8px; color: #222; }
p { font-size: 14px; line-height: 1.5; margin: 0 0 12px; } p.small { font-size: 12px; color: #888; }
a { color: #2a6fdb; text-decoration: underline; } a.button { display: inline-block; padding: 10px 18px; color: #fff; }
a.button { background-color: #2a6fdb; border-radius: 3px; text-decoration: none; font-weight: bold; }
.row td { border-bottom: 1px solid #e8e8ee; } .row:first-child td { border-top: 1px solid #e8e8ee; }
.row .name { font-weight: bold; } .row .count { text-align: right; color: #555 !important; white-space: nowrap; }
.footer { padding: 24px 0; text-align: center; } .footer a { color: #888; } #preheader { display: none; }
ul.list > li { margin-left: 12px; } .muted, .muted p { color: #999; } td[align="right"] { font-size: 13px; }
@media (max-width: 600px) { .content { width: 100% !important; } .row .count { display: block; } }
</style></head>
<body><span id="preheader">What happened on the coast this week</span>
<table class="wrapper" role="presentation"><tr><td><table class="content" role="presentation"><tr><td>
<h1>Your weekly summary</h1><p>It was a quiet week on the coast, and the numbers below say much the same.</p>
<p><a class="button" href="https://app.example.com/weeks/9">Open the summary</a></p>
<table width="100%" role="presentation">
ROWS</table>
<p class="small muted">You get this because you asked for it.</p></td></tr></table>
<div class="footer"><p class="small"><a href="https://app.example.com/preferences">Preferences</a> &middot;
<a href="https://app.example.com/unsubscribe">Unsubscribe</a></p></div></td></tr></table></body></html>
"""
_ROW = """\
<tr class="row"><td class="name" width="75%" style="padding-right: 16px;">
<table role="presentation" width="100%" cellpadding="0" cellspacing="0" border="0"><tr><td class="inner">
<h3>Harbour {number}</h3>
<p>Boats in and out, grüße aus dem Hafen, and what the weather did to them on each of the days. On Monday the wind was
light and from the west, and most of those who had waited left in the morning; by noon the quay was empty but for two
trawlers under repair. From Tuesday on it rained, which kept visitors away, and gave the crews the time to mend nets and
to paint what needs paint each spring. The fish market was open on four of six days, with prices as in the week before.
The ferry kept to its timetable all week, and took some hundred more passengers than in the same week of last year.</p>
<p class="small">Figures are those of the harbour master. <a href="https://app.example.com/harbours/{number}?week=9&amp;from=mail"
style="font-weight: bold;">All of this week</a></p>
</td></tr></table></td>
<td class="count" align="right" width="25%">{number} in<br>{number} out</td></tr>
"""

"""Which links become slots for a recipient's own URLs, and where the beacon goes."""

from pathlib import Path

import pytest

from proxy.compose import edits as editing
from proxy.compose.edits import Slot
from proxy.compose.steps import Composed
from tests.compose.support import TEMPLATES, compose, message, only, template, url

CLICKS = only("track_clicks")
OPENS = only("track_opens")
LINK = "https://example.invalid/a"


def targets(html: str) -> list[str]:
    return [slot.target for slot in compose(message(html), CLICKS).slots]


def written(composed: Composed) -> bytes:
    """The HTML with URLs put in."""
    pieces, done = [], 0
    for slot in composed.slots:
        pieces += [composed.html[done : slot.position], b"URL"]
        done = slot.position
    return b"".join([*pieces, composed.html[done:]])


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        (f'<a href="{LINK}">x</a>', [LINK]),
        (f"<A HREF='{LINK}'>x</A>", [LINK]),
        (f"<a href={LINK}>x</a>", [LINK]),
        (f'<map><area href="{LINK}"></map>', [LINK]),
        ('<a href="http://example.invalid">x</a>', ["http://example.invalid"]),
        ('<a href="HTTPS://EXAMPLE.invalid/">x</a>', ["HTTPS://EXAMPLE.invalid/"]),
        ('<a href="https://example.invalid/?a=1&amp;b=2&copy=3">x</a>', ["https://example.invalid/?a=1&b=2&copy=3"]),
        ('<a href="https://example.invalid/?a=1&b=2">x</a>', ["https://example.invalid/?a=1&b=2"]),
        ('<a href="&#104;ttps://example.invalid/">x</a>', ["https://example.invalid/"]),
        ('<a href="  https://example.invalid/\r\n ">x</a>', ["https://example.invalid/"]),
        ('<a href="https://example.invalid/a\r\n\tb">x</a>', ["https://example.invalid/ab"]),
        ('<a href="https://example.invalid/é?x=%C3%A9">x</a>', ["https://example.invalid/é?x=%C3%A9"]),
        ('<a href="https://[::1]:8080/?a[0]=1">x</a>', ["https://[::1]:8080/?a[0]=1"]),
        (f'<v:roundrect xmlns:v="urn:x" href="{LINK}" arcsize="8%">x</v:roundrect>', [LINK]),
        (
            f'<!--[if mso]><v:roundrect href="{LINK}"></v:roundrect><![endif]--><a href="{LINK}/2">x</a>',
            [LINK, f"{LINK}/2"],
        ),
        (f'<!--[if mso]><a href="{LINK}">x</a><![endif]-->', [LINK]),
        (f'<!--[if !mso]><!--><a href="{LINK}">x</a><!--<![endif]-->', [LINK]),
        (f'<a href="{LINK}" href="{LINK}/2">x</a>', [LINK]),
        (f'<!-- <a href="{LINK}"> -->', []),
        (f"<style>/* <a href='{LINK}'> */</style>", []),
        (f'<link href="{LINK}"><img src="{LINK}"><form action="{LINK}"><base href="{LINK}">', []),
        ('<a href="mailto:a@example.invalid">x</a>', []),
        ('<a href="tel:123"><a href="ftp://x.invalid/"><a href="javascript:x"><a href="cid:x">', []),
        ('<a href="#top"><a href=""><a href><a><a href="/path"><a href="//example.invalid/">', []),
        ('<a href="https://"><a href="https:///x"><a href="https:example">', []),
        ('<a href="{{url}}"><a href="https://x.invalid/{{id}}"><a href="https://x.invalid/{% id %}">', []),
        ('<a href="https://x.invalid/?a=*|ID|*"><a href="*|URL|*"><a href="https://*|HOST|*/">', []),
        (
            '<a href="%unsubscribe_url%"><a href="https://x.invalid/%recipient.id%"><a href="https://x.invalid/?%ad_id%">',
            [],
        ),
        (
            '<a href="https://x.invalid/[[id]]"><a href="https://x.invalid/<%= id %>"><a href="https://x.invalid/${id}">',
            [],
        ),
        ('<a href="https://x.invalid/a b">x</a>', []),
    ],
)
def test_links_to_the_web_and_no_others(html: str, expected: list[str]) -> None:
    """The target of a slot is the address a browser would ask for; what is no such address is left alone."""
    assert targets(html) == expected


@pytest.mark.parametrize(
    "attribute",
    [
        "disable-tracking=true", 'disable-tracking="TRUE"', "disable-tracking", "data-disable-tracking='true'",
        "data-pm-no-track", 'data-pm-no-track="true"', "clicktracking=off", "clicktracking='OFF'",
        "mc:disable-tracking", 'mc:disable-tracking="true"', "ses:no-track", 'data-msys-clicktrack="0"',
    ],
)  # fmt: skip
def test_links_that_opt_out_are_left_alone(attribute: str) -> None:
    """Each provider's way to say so is understood, before and behind the address."""
    assert targets(f'<a {attribute} href="{LINK}">x</a><a href="{LINK}" {attribute}>x</a>') == []


@pytest.mark.parametrize(
    "attribute", ["disable-tracking=false", "clicktracking=on", "data-msys-clicktrack=1", "title=disable-tracking"]
)
def test_links_that_do_not_opt_out_are_tracked(attribute: str) -> None:
    """The same attributes with the other value say nothing."""
    assert targets(f'<a {attribute} href="{LINK}">x</a>') == [LINK]


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        (f'<a href="{LINK}">x</a>', '<a href="URL">x</a>'),
        (f"<a href='{LINK}'>x</a>", "<a href='URL'>x</a>"),
        (f"<a href={LINK}>x</a>", '<a href="URL">x</a>'),
        (f"<a class=b href={LINK} id=c>x</a>", '<a class=b href="URL" id=c>x</a>'),
        (f'<a href = "\r\n{LINK} ">x</a>', '<a href = "URL">x</a>'),
    ],
)
def test_url_goes_between_quotes(html: str, expected: str) -> None:
    """Only the value is replaced; one without quotes gets some, because a URL may hold anything."""
    assert written(compose(message(html), CLICKS)).decode() == expected


def test_url_is_written_as_the_value_of_an_attribute() -> None:
    """Whatever the caller gives as URL cannot end the attribute."""
    composed = compose(message(f"<a href='{LINK}'>x</a>", "8bit"), CLICKS)
    assert b"href='https://t.invalid/?a=1&amp;b=&#x27;&quot;&lt;&gt;&#233;'" in composed.copy(
        lambda _: "https://t.invalid/?a=1&b='\"<>é"
    )


def test_each_copy_has_its_own_urls_and_nothing_else_differs() -> None:
    """CSS and links are worked out once; only the URLs are put in for each recipient."""
    composed = compose(message(f'<a href="{LINK}">x</a>'))
    one = composed.copy(lambda slot: f"https://t.invalid/aaa/{slot.kind}")
    two = composed.copy(lambda slot: f"https://t.invalid/bbb/{slot.kind}")
    assert one != two
    assert one.replace(b"aaa", b"bbb") == two


def beacon_at(html: str) -> tuple[str, str]:
    composed = compose(message(html), OPENS)
    (slot,) = composed.slots
    assert slot == Slot(slot.position, "open", "")
    before, _, rest = written(composed).decode().partition('<img src="URL" ')
    attributes, _, behind = rest.partition(">")
    assert 'alt=""' in attributes
    assert 'width="1" height="1"' in attributes
    return before, behind


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        ("<html><body><p>x</p>", "</body></html>"),
        ("<p>x</p>", "</BODY >"),
        ("<body>a</body> b", "</body>"),
        ("<body>a<!-- </body> -->", "</body><!-- </body> -->"),
        ("<body>a", "</body><!--[if mso]></body><![endif]-->"),
        ("<p>x</p>", ""),
        ("<p>x</p>", "\r\n"),
        ("<html><p>x</p></html>", "\r\n\r\n"),
    ],
)
def test_beacon_goes_before_the_last_end_of_the_body(before: str, behind: str) -> None:
    """Without an end of the body it goes to the end of the text, before the line end that ends the message."""
    assert beacon_at(before + behind) == (before, behind)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_undoing_the_edits_of_a_template_gives_its_bytes(path: Path) -> None:
    """What is not a reported edit keeps its bytes."""
    html = template(path)
    composed = compose(message(html))
    assert composed.failed == ()
    assert editing.undo(composed.html, composed.edits) == html
    assert url(composed.slots[-1])

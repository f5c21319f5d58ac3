"""Style sheets copied into style attributes: what is copied, what is not, and that nothing else changes."""

import pytest

from proxy.compose.html_steps import html_work
from proxy.compose.work import HtmlWork
from tests.compose.support import inlined


def styled(css: str, body: str) -> str:
    """The body after inlining."""
    sheet = f"<style>{css}</style>"
    result = inlined(sheet + body)
    assert result.startswith(sheet)
    return result[len(sheet) :]


@pytest.mark.parametrize(
    ("css", "before", "after"),
    [
        ("p{color:red}", "<p>x", '<p style="color: red">x'),
        ("p{color:red}", "<P CLASS=a >x", '<P style="color: red" CLASS=a >x'),
        ("img{border:0}", "<img src=a />", '<img style="border: 0" src=a />'),
        ("q{color:red}", "<p>x", "<p>x"),
        ("p{}", "<p>x", "<p>x"),
        ("", "<p>x", "<p>x"),
        ("/* p{a:b} */ p{color:red/**/}", "<p>x", '<p style="color: red">x'),
        ("<!-- p{color:red} -->", "<p>x", '<p style="color: red">x'),
        ("body{margin:0}", "<p>x", "<p>x"),
        ("body{margin:0}", "<body><p>x", '<body style="margin: 0"><p>x'),
    ],
)
def test_declarations_go_into_start_tags(css: str, before: str, after: str) -> None:
    """An element that has a start tag gets what its rules say; one that a browser makes up does not."""
    assert styled(css, before) == after


@pytest.mark.parametrize(
    ("css", "before", "after"),
    [
        ("p{color:red}#i{color:blue}.c{color:green}", "<p id=i class=c>", "color: blue"),
        ("p{color:red}p{color:blue}", "<p>", "color: blue"),
        (".c{color:red}p{color:blue}", "<p class=c>", "color: red"),
        ("p{color:red!important}#i{color:blue}", "<p id=i>", "color: red !important"),
        ("p,#i{color:red}.c{color:blue}", "<p id=i class=c>", "color: red"),
        ("p{margin:1px}p{margin-top:2px}", "<p>", "margin: 1px; margin-top: 2px"),
        ("p{margin-top:2px}p{margin:1px}", "<p>", "margin-top: 2px; margin: 1px"),
        ("#i{margin-top:2px}p{margin:1px}", "<p id=i>", "margin: 1px; margin-top: 2px"),
        ("p{margin:1px;margin-top:2px}p{margin-top:3px;margin:4px}", "<p>", "margin-top: 3px; margin: 4px"),
        ("p{color:red;color:rgb(1 2 3)}", "<p>", "color: red; color: rgb(1 2 3)"),
        ("p{COLOR:RED}p{color:blue}", "<p>", "color: blue"),
        ("p{mso-line-height-rule:exactly;*zoom:1;_h:1}", "<p>", "mso-line-height-rule: exactly"),
        ("p{background:url(data:image/png;base64,x)}", "<p>", "background: url(data:image/png;base64,x)"),
        ("p{color:red;;;top:0;:x;y}", "<p>", "color: red; top: 0"),
        ("p{font:\n  12px/1\n  serif}", "<p>", "font: 12px/1 serif"),
    ],
)
def test_cascade_decides_what_is_copied(css: str, before: str, after: str) -> None:
    """Importance, specificity and order, with shorthands in their place and fall-backs of one rule kept."""
    assert styled(css, before) == f'{before[:2]} style="{after}"{before[2:]}'


@pytest.mark.parametrize(
    ("css", "before", "after"),
    [
        ("p{margin:0}", '<p style="top:0">', '<p style="margin: 0; top:0">'),
        ("p{top:1px}", '<p style="top:0">', '<p style="top:0">'),
        ("p{top:1px!important}", '<p style="top:0">', '<p style="top: 1px !important; top:0">'),
        ("p{top:1px!important}", '<p style="top:0!important">', '<p style="top:0!important">'),
        ("p{margin-top:1px}", '<p style="margin:0">', '<p style="margin-top: 1px; margin:0">'),
        ("p{margin:0}", "<p style='top:0'>", "<p style='margin: 0; top:0'>"),
        ("p{margin:0}", "<p style=top:0>", '<p style="margin: 0; top:0">'),
        ("p{margin:0}", '<p style="">', '<p style="margin: 0">'),
        ("p{margin:0}", '<p id=i STYLE = " top:0; " class=c>', '<p id=i STYLE = "margin: 0;  top:0; " class=c>'),
        ("p{margin:0}", '<p style="{{#if a}}color:red;{{/if}}">', '<p style="margin: 0; {{#if a}}color:red;{{/if}}">'),
        ("p{margin:0}", '<p style="font-family:&quot;A&quot;">', '<p style="margin: 0; font-family:&quot;A&quot;">'),
        ("p{font-family:\"A B\",'C'}", "<p>", "<p style=\"font-family: &quot;A B&quot;,'C'\">"),
        ('p{font-family:"A B"}', "<p>", "<p style=\"font-family: 'A B'\">"),
        ('p{font-family:"A B"}', "<p style='top:0'>", "<p style='font-family: \"A B\"; top:0'>"),
        ("p{font-family:'A B'}", "<p style='top:0'>", "<p style='font-family: \"A B\"; top:0'>"),
        ('p{font-family:"Ünï"}', "<p>", "<p style=\"font-family: '&#220;n&#239;'\">"),
        ("p{background:url(a?b&c)}", "<p>", '<p style="background: url(a?b&amp;c)">'),
        ("p{margin:0}", "<p style>", "<p style>"),
    ],
)
def test_style_attributes_keep_their_bytes_and_come_last(css: str, before: str, after: str) -> None:
    """What is in a style attribute stays as it is, template leftovers and entities included."""
    assert styled(css, before) == after


@pytest.mark.parametrize(
    "sheet",
    [
        "<style>@media (max-width:600px){p{color:red}}</style>",
        "<style>@supports (a:b){@media print{p{color:red}}}</style>",
        "<style>@font-face{font-family:p}@keyframes p{from{color:red}}@page{margin:0}@import 'x';</style>",
        "<style>p:hover{color:red}p::before{color:red}p:first-letter{color:red}</style>",
        '<style media="print">p{color:red}</style>',
        '<style media="(max-width:600px)">p{color:red}</style>',
        '<style type="text/less">p{color:red}</style>',
        "<style data-embed>p{color:red}</style>",
        "<!--[if mso]><style>p{color:red}</style><![endif]-->",
        "<!-- <style>p{color:red}</style> -->",
        "<style>p::-moz-x,p{color:red}</style>",
        "<style>{{#if}}p{color:red",
    ],
)
def test_rules_under_a_condition_stay_where_they_are(sheet: str) -> None:
    """Media queries, states and Outlook's own style sheets are copied nowhere."""
    html = f"{sheet}<p>x</p>"
    assert inlined(html) == html


@pytest.mark.parametrize(
    ("css", "before", "after"),
    [
        ("p{width:1px;top:0}@media x{p{width:2px}}", "<p>", '<p style="top: 0">'),
        ("p{width:1px}@media x{p{width:2px!important}}", "<p>", '<p style="width: 1px">'),
        ("p{width:1px!important}@media x{p{width:2px!important}}", "<p>", "<p>"),
        ("p{width:1px!important}@media x{p{width:2px}}", "<p>", '<p style="width: 1px !important">'),
        ("#i{width:1px}@media x{p{width:2px}}", "<p id=i>", '<p style="width: 1px" id=i>'),
        ("p{width:1px}@media x{.c{width:2px}}", "<p><p class=c>", '<p style="width: 1px"><p class=c>'),
        ("p{padding:1px;top:0}@media x{p{padding-left:0}}", "<p>", '<p style="top: 0">'),
        ("p{border-top:0}@media x{p{border-color:red}}", "<p>", "<p>"),
        ("p{line-height:2}@media x{p{font:1px a}}", "<p>", "<p>"),
        # padding-top would come to the top if padding alone were held back
        ("p{padding-top:9px}p{padding:1px}@media x{p{padding-left:0}}", "<p>", "<p>"),
        ("p{display:none}p:hover{display:block}", "<p>", "<p>"),
        ("a{color:red}a:hover{color:blue}", "<a>", '<a style="color: red">'),
        ("p{top:0;left:0}p:is(.c){top:1px}", "<p>", '<p style="left: 0">'),
    ],
)
def test_nothing_is_copied_that_would_override_a_rule_that_stays(css: str, before: str, after: str) -> None:
    """A reader who knows style sheets sees no difference, whatever the condition."""
    assert styled(css, before) == after


def test_selectors_that_ask_for_style_attributes_get_the_same_answers() -> None:
    """A style attribute that would make such a selector match, or no longer match, is not written."""
    css = "p{margin-top:0;color:red}[style*='margin']{top:0}"
    assert styled(css, "<p>") == "<p>"
    assert styled(css, '<p style="margin:1px">') == '<p style="margin-top: 0; color: red; top: 0; margin:1px">'


@pytest.mark.parametrize(
    ("test", "style", "is_written"),
    [
        ("[style]", None, False),
        ("[style]", "left:0", True),
        ("[style='left:0']", "left:0", False),
        ("[style=left]", "left:0", True),
        ("[style^=left]", "left:0", False),
        ("[style^='color']", "left:0", False),
        ("[style$=':0']", "left:0", True),
        ("[style$='0']", None, False),
        ("[style~='red;']", "left:0", False),
        ("[style|=top]", "left:0", True),
        ("[STYLE*='COLOR' i]", None, False),
        ("[style*=width]", "left:0", True),
    ],
)
def test_selectors_about_style_attributes_hold_back_what_would_change_their_answer(
    test: str, style: str | None, is_written: bool
) -> None:
    """All comparisons are answered as browsers answer them, before and after."""
    element = "<p>" if style is None else f'<p style="{style}">'
    changed = styled(f"p{{color:red;top:0}}q{test}{{left:0}}", element) != element
    assert changed is is_written


@pytest.mark.parametrize(
    "sheets",
    [
        "<style>" + "p{top:0}" * 5001 + "</style>",
        "<style>" + " " * 600_000 + "p{top:0}</style>",
        "<svg><style><b>p{top:0}</b></style></svg>",
        "<svg><style>p{top:0}",
    ],
)
def test_style_sheets_that_are_too_much_are_said_to_have_failed(sheets: str) -> None:
    """Nothing is copied then, and the other steps go on."""
    result = html_work(HtmlWork(f"{sheets}<p>x</p>".encode(), "utf-8", frozenset(["inline_css", "track_opens"])))
    assert result.failed == (("inline_css", "malformed"),)
    assert [edit.step for edit in result.edits] == ["track_opens"]


@pytest.mark.parametrize(
    ("sheet", "written"),
    [
        ("circle{fill:red}", "color: red; top: 0"),
        ("p{color:blue}", "top: 0"),
        ("p &gt; b, div > p{color:blue}", "top: 0"),
        ("<![CDATA[ div > p{color:blue} ]]>", "top: 0"),
        ("/* p{ */ @media (max-width:1px){p{top:1px}}", "color: red"),
        ("", "color: red; top: 0"),
    ],
)
def test_style_sheet_in_an_svg_stays_and_others_are_copied_around_it(sheet: str, written: str) -> None:
    """It holds for the whole message where the SVG is shown, so nothing is copied that would override it."""
    html = f"<style>p{{color:red;top:0}}</style><svg><style>{sheet}</style><circle/></svg><div><p>x</p></div>"
    assert inlined(html) == html.replace("<p>x", f'<p style="{written}">x')


def test_style_sheet_in_an_svg_that_is_no_element_of_its_own() -> None:
    """One that closes itself, or is another kind of sheet, says nothing."""
    for sheet in ("<style/>", '<style type="text/x">p{color:blue}</style>'):
        html = f"<style>p{{color:red}}</style><svg>{sheet}<path d='M0'/></svg><p>x</p>"
        assert inlined(html) == html.replace("<p>", '<p style="color: red">')


def test_messages_that_hold_our_mark_are_no_trap() -> None:
    """Somebody who knows the name of the numbers cannot give elements styles of others."""
    html = '<style>p{color:red}q{top:0}</style><q cm0="1">--cm0-0</q><p cm0="0" title="--cm0-1:1">x</p>'
    assert inlined(html) == html.replace("<q", '<q style="top: 0"').replace("<p ", '<p style="color: red" ')


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('<td width="600"">a</td></tr></table><div class=y>b</div><img alt="a > b">', None),
        ('<p class="c"">', '<p style="color: red" class="c"">'),
        ('<p width="100"" class="c">', '<p style="color: red" width="100"" class="c">'),
        ('<p class="c" <%= attrs %>>', '<p style="color: red" class="c" <%= attrs %>>'),
        ('<p <b class="c">', '<p style="color: red" <b class="c">'),
        ('<p a<b="" c"d="" class=c>', '<p style="color: red" a<b="" c"d="" class=c>'),
        ("<p title='\">' class=c>", '<p style="color: red" title=\'">\' class=c>'),
        ("<p ='x' class=c>", "<p style=\"color: red\" ='x' class=c>"),
    ],
)
def test_oddly_named_attributes_put_no_style_on_another_element(before: str, after: str | None) -> None:
    """One quote too many in a tag makes an attribute of that name; what follows is as it would be without it."""
    css = ".c{color:red}.y{display:none}"
    if after is None:
        before = f"<table><tr>{before}"
        after = before.replace("<div", '<div style="display: none"')
    assert styled(css, before) == after


def test_texts_that_look_like_our_marks_are_read_once() -> None:
    """Work that grows with the square of the text would outlive the test's time."""
    text = 'c&#109;0="1" ' * 100_000
    assert styled("p{color:red}", f"<p>{text}") == f'<p style="color: red">{text}'


def test_misnested_elements_get_no_style_they_would_not_all_have() -> None:
    """A parser makes two of one start tag here; where both have the same rules, both get them."""
    assert styled("b{color:red}", "<p><b>x<p>y</b>") == '<p><b style="color: red">x<p>y</b>'
    assert styled("i > b{color:red}", "<i><b>x</i>y</b>") == "<i><b>x</i>y</b>"


@pytest.mark.parametrize(
    "rest",
    [
        '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">',
        "<!--[if gte mso 9]><xml><o:OfficeDocumentSettings/></xml><![endif]-->",
        '<!--[if mso]><v:roundrect style="height:1px" href="x"><p>a</p></v:roundrect><![endif]-->',
        "{{#each items}}<td>{{name}}</td>{{/each}}", "*|IF:X|* %recipient.name% [[x]] <%= y %>",
        "&nbsp;&copy&#8217;&unknown; &", "<![if !mso]><i>x</i><![endif]>", "<br/><hr /></p></p></unknown>",
        "<svg><path d='M0'/></svg><o:p></o:p>", "\x00\x0b\t é \u200c \U0001f600",
    ],
)  # fmt: skip
def test_every_other_byte_stays(rest: str) -> None:
    """Doctype, conditional comments, VML, entities, template leftovers and broken markup are not touched."""
    html = f"{rest}<style>p{{color:red}}</style><p>x</p>{rest}"
    assert inlined(html) == f'{rest}<style>p{{color:red}}</style><p style="color: red">x</p>{rest}'


@pytest.mark.parametrize("codec", ["utf-8", "cp1252", "cp932", "gb18030", "iso2022-jp", "euc-jp", "big5", "koi8-r"])
def test_texts_in_other_charsets_keep_their_octets(codec: str) -> None:
    """What is inserted is ASCII, at the right place, whatever the characters around it are made of."""
    letters = {"koi8-r": "Привет", "cp1252": "café"}.get(codec, "表示ソ能")
    html = f"<style>p{{color:red}}</style><p title='{letters}'>{letters}</p>".encode(codec)
    result = html_work(HtmlWork(html, codec, frozenset(["inline_css"])))
    (edit,) = result.edits
    assert html[: edit.position].decode(codec).endswith("<p")
    assert edit.inserted == b' style="color: red"'

"""What Chromium makes of HTML before and after its style sheets were copied into style attributes."""

import html
import json
import random
import re
import subprocess
from pathlib import Path

from tests.compose.support import TEMPLATES, inlined
from tests.conftest import require_tool

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-extensions", "--blink-settings=imagesEnabled=false",
)  # fmt: skip
# Whatever a page asks for, nothing leaves the machine.
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
WIDTHS = (1000, 700, 360)

COMPARE = """
function view(frame) { return Array.from(frame.contentDocument.querySelectorAll('html, body, body *')); }
function seen(element) { return element.getClientRects().length > 0 || element.localName == 'html'; }
window.onload = () => {
  const frames = Array.from(document.querySelectorAll('iframe')), found = [];
  let elements = 0;
  for (let i = 0; i < frames.length; i += 2) {
    const before = view(frames[i]), after = view(frames[i + 1]), name = frames[i].title;
    if (before.length != after.length) { found.push([name, 'elements', before.length, after.length]); continue; }
    before.forEach((element, at) => {
      const other = after[at];
      if (seen(element) != seen(other)) found.push([name, element.outerHTML.slice(0, 200), 'seen', seen(element)]);
      if (!seen(element)) return;
      elements += 1;
      const one = frames[i].contentWindow.getComputedStyle(element);
      const two = frames[i + 1].contentWindow.getComputedStyle(other);
      for (const property of one) {
        const [a, b] = [one.getPropertyValue(property), two.getPropertyValue(property)];
        if (a != b) { found.push([name, other.outerHTML.slice(0, 300), property, a, b]); break; }
      }
    });
  }
  document.body.textContent = 'RESULT' + JSON.stringify({elements, found}) + 'RESULT';
};
"""

PROPERTIES = {
    "margin": "1px 2px", "margin-left": "7px", "padding": "3px", "padding-top": "9px", "color": "rgb(1, 2, 3)",
    "border": "1px solid red", "border-top": "2px dotted blue", "border-color": "green", "border-width": "4px",
    "font": "italic 20px/2 serif", "font-size": "13px", "line-height": "1.7", "font-family": '"Open Sans", serif',
    "background": "yellow", "background-color": "pink", "width": "80px", "max-width": "50px", "display": "inline-block",
    "text-align": "right", "text-decoration": "underline", "list-style": "square", "opacity": ".5", "float": "left",
}  # fmt: skip
SELECTORS = (
    "p", "div", "td", "a", "li", "*", "body", "html", ":root", ".a", ".b", ".c", "#i", "#j", "p.a", ".a.b", "div p",
    "div > p", "p + p", "p ~ .b", "li:first-child", "li:last-child", "td:nth-child(2)", "p:not(.a)", "[title]",
    "[title='x y']", "[style*=top]", ".a, #i",
    "p, .c", "p:hover", "a:link", "div:empty", "p::first-line", ".a::-moz-x, .b", "ul li:nth-child(2n + 1)",
    "li:nth-last-child(1)",
    "p:is(.a, .b)", "p:only-child", "p:first-of-type", "P.a", "a:visited", ".a:hover, .b", "p:lang(en)", "p::before",
)  # fmt: skip
BODY = (
    '<div class="a"><p class="a b" id="i">x</p><p class="b" style="{}">y</p><p title="x y">z</p></div><ul>'
    '<li class="c">1</li><li style="{}">2</li><li>3</li></ul><table><tr><td>a</td><td id="j">b</td></tr></table>'
    '<div class="c"></div><a class="b" href="https://x.invalid/">l</a><div><p><b><i class="a">n</b></i></p>'
    '</div><p class="c">e'
)


# Each once with a document type and once without: quirks mode has rules of its own.
CORNERS = (
    "<style>p{color:red}.A{color:blue}</style><p class=a>x",
    "<style>p{color:red}.A{color:blue}</style><p class=a>x",
    "<style>p{color:red}#A{color:blue}[CLASS=a]{top:3px}</style><p class=a id=a>x",
    (
        "<style>p{color:red}p[title=A]{color:blue}p[TITLE=a i]{width:3px}input[type=TEXT]{width:9px}inpu"
        "t{width:8px}</style><p title=a>x<input type=text>"
    ),
    (
        "<style>p{color:red}p:has(b){color:blue}p:where(.x){top:1px}p:not(.a,.b){width:10px}p{width:9px}"
        "</style><p class=c><b>x</b>"
    ),
    "<style>p{color:red}p{color:notacolor}p{width:10px}p{width:-5px}p{margin:1px}p{margin:2px bad}</style><p>x",
    "<style>p{color:red}\np{color:blue</style><p>x",
    ("<style>@layer a{p{color:red}}p{color:blue}@layer a{p{width:3px!important}}p{width:2px!important}</style><p>x"),
    "<style>:root{--c:red}p{color:var(--c)}@media (min-width:1px){:root{--c:blue}}</style><p>x",
    '<style>td{width:9px}table td{width:10px}</style><table><td width=50 style="width:20px">x<td>y</table>',
    "<style>p{color:red}div{color:green}</style><div><p>x<p>y<div>z</p></div>",
    "<style>p{all:unset;color:red}p{width:10px}@media (min-width:1px){p{all:revert}}</style><p>x",
    (
        "<style>a:link{color:red}a{color:blue}a:any-link{color:pink}a:not([href]){color:green}</style><a"
        " href=x>a</a><a>b</a>"
    ),
    (
        "<style>p{flex:1;flex-grow:2;inset:1px;top:2px;grid-area:1;place-items:center;align-items:start;"
        "overflow:hidden;overflow-x:scroll;text-decoration:underline;text-decoration-color:red;border-ra"
        "dius:3px;border-top-left-radius:4px;margin-inline:5px;margin-left:6px}@media (min-width:1px){p{"
        "top:9px;align-items:end;flex:3;margin-inline:1px;overflow:auto;border-top-left-radius:1px;gap:1"
        "px}}p{column-gap:4px}</style><p>x"
    ),
    (
        "<style>p{top:2px;align-items:start;overflow-x:scroll;margin-left:6px;flex-grow:2;column-gap:4px"
        ";padding-left:1px}@media (min-width:1px){p{inset:9px;place-items:end;overflow:auto;margin-inlin"
        "e:1px;flex:3;gap:1px;padding-block:3px}}</style><p>x"
    ),
    '<style>p{color:red;&.a{color:blue}}p{width:5px}.b{&{width:7px}}</style><p class="a b">x',
    "<style>p{color:red}/*</style><p>x<style>*/p{color:blue}</style><p>y",
    (
        "<style>p{color:red}</style><select><option>a<p>b</select><template><p>x</template><noscript><p>"
        "ns</noscript><p>y"
    ),
    "<noscript><style>p{color:blue}</style></noscript><style>p{color:red}</style><p>y",
    "<style>p{color:re/**/d;width:1/**/0px;margin:1px/**/2px}</style><p>y",
    '<style>p{c\\6flor:red;width:1\\0px}.a\\:b{width:10px}.\\31 0{height:3px}</style><p class="a:b 10">y',
    (
        '<style media="screen, print">p{color:blue}</style><style>p{color:red}</style><style media="not '
        'all">p{width:3px}</style><p>y'
    ),
    (
        "<style>p{width:10px!important}@media (min-width:1px){p{width:20px!important}}p{width:30px}</sty"
        'le><p style="width:40px">y'
    ),
    '<style>p{width:10px!ie;color:red!important!important;height:3px !}</style><p style="width:40px">y',
    (
        "<style>p{color:red}p:focus-within{color:blue}p:nth-child(1 of .a){width:3px}p:first-child::firs"
        "t-line{color:pink}p{width:4px}</style><p class=a>y"
    ),
    (
        "<style>p{width:4px}p:nth-child( 2N + 1 ){width:3px}p:NTH-CHILD(odd){height:3px}P:First-Child{ma"
        "rgin:3px}p{height:2px}</style><p class=a>y"
    ),
    (
        "<style>p{color:red;width:9px}circle{r:9px}</style><svg><style>p{color:blue}circle{fill:red}</style>"
        "<circle r=3></circle></svg><p>y"
    ),
    "<style>p{color:red;width:9px}</style><svg><style>i &gt; p{width:7px}</style></svg><i><p>y</p></i><p>z",
    "<style>p{color:red;width:9px}</style><svg><style><![CDATA[i>p{width:7px}]]></style></svg><i><p>y</p></i><p>z",
    "<style>p{color:red;width:9px}</style><svg><style/><text>p{width:7px}</text></svg><p>y",
    "<style>p{color:red;width:9px}</style><svg><style><!--p{width:7px}--></style></svg><p>y",
    "<svg><style>p{width:7px !important}</style></svg><style>p{color:red;width:9px !important}</style><p>y",
    "<style>html|p{width:4px}*|p{height:4px}p>{width:3px}p,{width:2px}>p{width:1px}p{width:7px}</style><p>y",
)


def run(pairs: list[tuple[str, int, str, str]], folder: Path) -> tuple[int, list[list[str]]]:
    """Have Chromium compare pages before and after; give the number of elements looked at, and all differences."""
    chromium = require_tool("chromium")
    frames = [
        f'<iframe title="{name} {width}" width="{width}" height="800" srcdoc="{html.escape(text)}"></iframe>'
        for name, width, *texts in pairs
        for text in texts
    ]
    page = folder / "page.html"
    page.write_text(f"<!DOCTYPE html><meta charset=utf-8><script>{COMPARE}</script><body>{''.join(frames)}")
    command = [chromium, *FLAGS, OFFLINE, f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()]
    output = subprocess.run(command, check=True, capture_output=True, timeout=55, text=True).stdout
    found = re.search(r"<body>RESULT(.*)RESULT", output, re.DOTALL)
    assert found is not None, output[:500]
    result = json.loads(html.unescape(found[1]))
    return result["elements"], result["found"]


def test_templates_look_the_same_at_every_width(tmp_path: Path) -> None:
    """Computed styles agree on all visible elements, whether a media query applies or not."""
    pairs = []
    for path in TEMPLATES:
        before = path.read_text()
        after = inlined(before)
        pairs.extend([(path.name, width, before, after) for width in WIDTHS])
    elements, found = run(pairs, tmp_path)
    assert elements > 2000
    assert found == []


def test_corners_of_css_look_the_same(tmp_path: Path) -> None:
    """Quirks, nesting, layers, logical properties, comments, escapes: copied rightly, or not at all."""
    pages = [f"{doctype}{page}" for page in CORNERS for doctype in ("<!DOCTYPE html>", "")]
    pairs = [(html.escape(page[:60]), 900, page, inlined(page)) for page in pages]
    elements, found = run(pairs, tmp_path)
    assert elements > 100
    assert found == []


def test_comparison_sees_differences(tmp_path: Path) -> None:
    """Pages that do not look the same are told from those that do."""
    page = "<style>p{margin:0}</style><p>x"
    changed = page.replace("<p>", '<p style="margin-top: 1px">')
    assert run([("same", 900, page, page)], tmp_path)[1] == []
    assert [row[2] for row in run([("other", 900, page, changed)], tmp_path)[1]][-1].startswith("margin")


def test_generated_style_sheets_look_the_same(tmp_path: Path) -> None:
    """Specificity, order, shorthands, importance, conditions and style attributes: the cascade stays what it was."""
    chance = random.Random(2026)  # noqa: S311 - the same pages every time
    pairs = []
    for number in range(30):
        before = generated(chance)
        pairs.extend([(f"page {number}", width, before, inlined(before)) for width in (900, 400)])
    elements, found = run(pairs, tmp_path)
    assert elements > 1000
    assert found == []


def generated(chance: random.Random) -> str:
    """Write a page with a style sheet of any kind."""

    def block() -> str:
        names = chance.sample(sorted(PROPERTIES), chance.randint(1, 4))
        return "; ".join([f"{name}: {PROPERTIES[name]}{chance.choice(['', '', '', ' !important'])}" for name in names])

    def rule() -> str:
        return f"{chance.choice(SELECTORS)} {{ {varied(block(), chance)} }}"

    sheet = []
    for _ in range(chance.randint(3, 14)):
        text = rule()
        if chance.random() < 0.2:
            text = f"@media (max-width: 600px) {{ {text} {rule()} }}"
        elif chance.random() < 0.1:
            text = f"/* x */ @supports (display: block) {{ {text} }}"
        sheet.append(text)
    doctype = chance.choice(["<!DOCTYPE html>", ""])
    styles = [html.escape(varied(block(), chance)) if chance.random() < 0.7 else "" for _ in range(2)]
    return f"{doctype}<html><head><style>{' '.join(sheet)}</style></head><body>{BODY.format(*styles)}</body></html>"


def varied(block: str, chance: random.Random) -> str:
    """Vary the numbers, so that it shows which of two declarations counts."""
    return re.sub(r"\d+px", lambda _: f"{chance.randint(1, 60)}px", block)

"""
What is done with HTML itself: text, styles, links, beacon.

The only module of the steps that loads native code, so only the worker process does, and tests.
"""

from proxy.compose import edits as editing
from proxy.compose import inline_css, text_part, tracking, transfer
from proxy.compose.edits import Edit
from proxy.compose.markup import Tag, depth, tags
from proxy.compose.work import MAX_DEPTH, MAX_EDITS, MAX_HTML_OCTETS, STEPS, HtmlResult, HtmlWork

_HIDING = (b"display", b"visibility", b"mso-hide", b"max-height", b"opacity")


def html_work(work: HtmlWork) -> HtmlResult:
    """As :func:`proxy.compose.steps.html_work`."""
    if len(work.html) > MAX_HTML_OCTETS:
        return _failed(work, "too_large")
    view = transfer.ascii_view(work.html, work.codec)
    found = tags(view)
    if depth(found) > MAX_DEPTH:
        return _failed(work, "too_deep")
    failed: list[tuple[str, str]] = []
    styles, text = _styles(work, view, found, failed), None
    if "text_part" in work.steps:
        text = text_part.render(editing.apply(work.html, styles)[0].decode(work.codec, "replace"))
    changes = list(styles) if "inline_css" in work.steps else []
    if "track_clicks" in work.steps:
        changes.extend(tracking.links(found, work.codec))
    if "track_opens" in work.steps and work.html.strip():
        changes.append(tracking.beacon(view, found))
    changes.sort(key=lambda edit: edit.position)
    if len(changes) > MAX_EDITS:
        return _failed(work, "too_large")
    return HtmlResult(text, tuple(changes), tuple(failed))


def _styles(work: HtmlWork, view: bytes, found: list[Tag], failed: list[tuple[str, str]]) -> list[Edit]:
    """Work out the styles if they are wanted, or if the text depends on what a style sheet hides."""
    if "inline_css" not in work.steps:
        lower = view.lower()
        if "text_part" not in work.steps or b"<style" not in lower or not any(word in lower for word in _HIDING):
            return []
    try:
        return inline_css.edits(work.html, view, work.codec, found)
    except inline_css.Unmatched:
        if "inline_css" in work.steps:
            failed.append(("inline_css", "malformed"))
        return []


def _failed(work: HtmlWork, reason: str) -> HtmlResult:
    return HtmlResult(failed=tuple([(step, reason) for step in STEPS if step in work.steps]))

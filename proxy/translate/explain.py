"""Tell a person what the rules made of a message: for ``translate --explain`` and the fixtures."""

from collections.abc import Iterator

from proxy.translate.model import Action
from proxy.translate.outcome import Loss, Setting, Translation

_DECISIONS = {Action.REFUSE: "refused with 554 5.6.0: {}", Action.DISCARD: "discarded, answered with 250: {}"}
_EFFECTS = {
    Action.IGNORE: "counted",
    Action.WARN: "warned of",
    Action.REFUSE: "message refused",
    Action.DISCARD: "message discarded",
}


def explain(translation: Translation) -> str:
    """Give the explanation, a line or two for each fact, ending with a line break."""
    return "".join(f"{line}\n" for line in _lines(translation))


def _lines(translation: Translation) -> Iterator[str]:
    yield f"providers  {', '.join(translation.providers) or 'none found'}"
    leaves = translation.action not in _DECISIONS
    for setting in translation.settings:
        yield f"{'set' if leaves else 'would set':<10} {setting.target}: {setting.value}"
        yield f"           {_origin(setting)}"
    for name in translation.removed if leaves else ():
        yield f"removed    {name}"
    for loss in translation.losses:
        yield f"lost       {_loss(loss)}"
        yield f"           {loss.where}"
    for remark in translation.remarks:
        yield f"remark     {remark.kind}: {': '.join(part for part in (remark.source, remark.text) if part)}"
        if remark.where:
            yield f"           {remark.where}"
    if translation.deliver_at and leaves:
        yield f"held       until {translation.deliver_at}"
    yield f"group      {translation.group or 'none (Ungrouped emails)'}"
    decision = _DECISIONS.get(translation.action, "passed on").format(translation.reason)
    yield f"decision   {decision}"


def _origin(setting: Setting) -> str:
    if not setting.source:
        return f"because the app says nothing: when_absent for {setting.provider}"
    return f"from {setting.source}, {setting.where}"


def _loss(loss: Loss) -> str:
    return f"{loss.source}: {loss.loses} (class {loss.loss_class}: {_EFFECTS[loss.action]})"

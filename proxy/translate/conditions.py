"""When something without a counterpart is really in use: the conditions of the rules under ``untranslatable:``."""

from proxy.translate import values
from proxy.translate.model import LossRule, When
from proxy.translate.values import Invalid, JsonValue


def use(rule: LossRule, text: str, recipients: tuple[str, ...]) -> bool:
    """As :func:`hold`, for the whole text of a field: an empty one says nothing, but that it is present."""
    return bool(text or rule.when is When.PRESENT) and hold(rule, [text], recipients)


def hold(rule: LossRule, nodes: list[JsonValue], recipients: tuple[str, ...]) -> bool:
    """
    Tell whether the conditions of a rule about losses hold for what stands at its place.

    Raises:
        Invalid: A switch has a word that means neither on nor off.
        TooMany: There is too much to look through.
    """
    selector = rule.selector
    plain = not (selector.separator or selector.key or selector.skip_prefix)
    if not (rule.words or rule.contains) and (rule.when is not When.SET or plain):  # no words to look at
        if rule.when is When.PRESENT:
            return True
        if rule.when is When.FILLED:
            return any(leaf is not None for leaf in values.leaves(nodes))
        if rule.when is When.SET:
            return any(values.is_set(leaf) for leaf in values.leaves(nodes))
    found = list(values.leaves(nodes))
    written = [values.word(leaf) for leaf in found if leaf is not None]
    try:
        words = values.items(selector, written)
    except Invalid:
        words = written  # malformed, yet in use
    if rule.words and not any(values.switch_word(word) in rule.words for word in words):
        return False
    if rule.contains and not any(rule.contains in word.lower() for word in words):
        return False
    if rule.when is When.PRESENT:
        return True
    if rule.when is When.FILLED:
        return bool(written)
    if rule.when is When.ENABLED or rule.when is When.DISABLED:
        return _switched(words, values.TRUE_WORDS if rule.when is When.ENABLED else values.FALSE_WORDS)
    if rule.when is When.OTHER_RECIPIENTS:
        named = set().union(*map(values.bare_addresses, words))
        return bool(named) and named != {values.bare_address(recipient) for recipient in recipients}
    if rule.words:  # a file that names 0 means it
        return True
    return any(values.is_set(leaf) for leaf in found) if plain else bool(words)


def _switched(words: list[str], wanted: frozenset[str]) -> bool:
    """Whether one of the words is one of those wanted; raises Invalid where none is and one means nothing at all."""
    found = {values.switch_word(word) for word in words}
    if not found.isdisjoint(wanted):
        return True
    if not found - {""} <= values.SWITCH_WORDS:
        raise Invalid(values.UNKNOWN_WORD)
    return False

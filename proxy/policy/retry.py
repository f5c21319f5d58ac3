"""
When to try again, when to tell the sender of a delay, and when to give up.

Source: RFC 5321, 4.5.4.1.
"""

from datetime import datetime, timedelta

from attrs import field, frozen
from attrs.validators import ge, gt


@frozen(kw_only=True)
class RetrySettings:
    """
    The back-off.

    Args:
        first_seconds: From the first attempt to the second.
        factor: How much longer each step is than the one before.
        max_seconds: The longest step, jitter not counted.
        expire_seconds: From acceptance to the last attempt.
        warn_seconds: From acceptance to the one DSN that tells of the delay; 0 for none.
    """

    first_seconds: float = field(default=60, validator=gt(0))
    factor: float = field(default=2, validator=ge(1))
    max_seconds: float = field(default=14_400, validator=gt(0))
    expire_seconds: float = field(default=432_000, validator=ge(0))
    warn_seconds: float = field(default=14_400, validator=ge(0))


def step_seconds(attempts: int, settings: RetrySettings) -> float:
    """
    The pause after so many attempts, without jitter; 0 before the first.

    Raises:
        ValueError: *attempts* is negative.
    """
    if attempts < 0:
        raise ValueError(f"{attempts} attempts")
    if attempts == 0:
        return 0
    try:
        step = settings.first_seconds * settings.factor ** (attempts - 1)
    except OverflowError:
        step = settings.max_seconds
    return min(step, settings.max_seconds)


def next_attempt(
    attempts: int, spooled_at: datetime, now: datetime, jitter: float, settings: RetrySettings
) -> datetime | None:
    """
    Choose when to try again.

    Args:
        attempts: Attempts already made; 0 before the first, which is due at once.
        spooled_at: When the message was accepted, or was to be sent at the earliest. Aware, UTC.
        now: The moment of the decision. Aware, UTC; given, so tests own the clock.
        jitter: Share of the step to add, 0.0 to 1.0, so that a restart does not wake every item at once.

    Returns:
        A time not before *now* and not behind the expiry, where the last attempt is made; None when that was it.

    Raises:
        ValueError: *attempts* is negative, or *jitter* out of range.

    Source: RFC 5321, 4.5.4.1 (it asks for 30 minutes between attempts and knows of shorter ones at first, and for 4 to
    5 days in all).
    """
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter {jitter}")
    expiry = spooled_at + timedelta(seconds=settings.expire_seconds)
    step = step_seconds(attempts, settings)
    if attempts and now >= expiry:
        return None
    # The first attempt is made even if the program was down for longer than a message lives.
    return max(now, min(now + timedelta(seconds=step * (1 + jitter)), expiry))


def delay_warning_due(spooled_at: datetime, now: datetime, *, warned: bool, settings: RetrySettings) -> bool:
    """
    Whether the sender is to hear now that a message is late: once, and only if there is time left to try.

    Whether there is a sender to tell (a null reverse-path has none) is for the caller to know.
    """
    if warned or not settings.warn_seconds:
        return False
    age = (now - spooled_at).total_seconds()
    return settings.warn_seconds <= age < settings.expire_seconds

"""When to try again: by table, and by what holds for any numbers."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.policy.retry import RetrySettings, delay_warning_due, next_attempt, step_seconds

SPOOLED = datetime(2026, 3, 1, tzinfo=UTC)
DEFAULT = RetrySettings()


def after(seconds: float) -> datetime:
    """A moment so long after acceptance."""
    return SPOOLED + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("attempts", "seconds"),
    [(0, 0), (1, 60), (2, 120), (3, 240), (8, 7680), (9, 14_400), (10, 14_400), (100, 14_400), (100_000, 14_400)],
)
def test_step_doubles_up_to_its_longest(attempts: int, seconds: float) -> None:
    """The pauses are 1, 2, 4 … minutes, and four hours from the ninth attempt on, however many there were."""
    assert step_seconds(attempts, DEFAULT) == seconds
    assert next_attempt(attempts, SPOOLED, after(1000), 0, DEFAULT) == after(1000 + seconds)


def test_first_attempt_is_due_at_once() -> None:
    """Nothing was tried yet, so nothing is waited for; the jitter changes nothing."""
    assert next_attempt(0, SPOOLED, SPOOLED, 1, DEFAULT) == SPOOLED


def test_first_attempt_is_made_even_after_the_expiry() -> None:
    """A program that was down for a week does not throw away what it never tried."""
    assert next_attempt(0, SPOOLED, after(600_000), 0, DEFAULT) == after(600_000)


def test_jitter_adds_its_share_of_the_step() -> None:
    """Half of 60 seconds on top."""
    assert next_attempt(1, SPOOLED, after(5), 0.5, DEFAULT) == after(95)


def test_last_attempt_is_at_the_expiry_and_none_follows() -> None:
    """A step that would lead past the expiry leads to it; when that one failed too, it is over."""
    assert next_attempt(30, SPOOLED, after(431_000), 0, DEFAULT) == after(432_000)
    assert next_attempt(31, SPOOLED, after(432_000), 0, DEFAULT) is None
    assert next_attempt(31, SPOOLED, after(432_001), 0, DEFAULT) is None


@pytest.mark.parametrize(("attempts", "jitter"), [(-1, 0.0), (1, -0.1), (1, 1.1), (1, float("nan"))])
def test_numbers_out_of_range_are_refused(attempts: int, jitter: float) -> None:
    """No guess is made about them."""
    with pytest.raises(ValueError, match=r"jitter|attempts"):
        next_attempt(attempts, SPOOLED, SPOOLED, jitter, DEFAULT)


@pytest.mark.parametrize("name", ["first_seconds", "max_seconds"])
def test_settings_that_would_never_wait_are_refused(name: str) -> None:
    """A step of no length would be a loop."""
    with pytest.raises(ValueError, match=name):
        RetrySettings(**{name: 0})


settings = st.builds(
    RetrySettings,
    first_seconds=st.floats(0.1, 1e5),
    factor=st.floats(1, 100),
    max_seconds=st.floats(0.1, 1e6),
    expire_seconds=st.floats(0, 1e7),
    warn_seconds=st.floats(0, 1e6),
)


@given(st.integers(0, 10_000), st.floats(-1e6, 1e8), st.floats(0, 1), settings)
def test_next_attempt_is_within_bounds(attempts: int, age: float, jitter: float, chosen: RetrySettings) -> None:
    """Never before now, never behind the expiry (but for the very first), never later than twice the longest step."""
    now = after(age)
    due = next_attempt(attempts, SPOOLED, now, jitter, chosen)
    expiry = after(chosen.expire_seconds)
    if due is None:
        assert attempts
        assert now >= expiry
        return
    assert due >= now
    assert due <= expiry or not attempts
    assert due - now <= timedelta(seconds=2 * chosen.max_seconds + 1e-3)


@given(st.integers(0, 1000), settings)
def test_steps_never_get_shorter(attempts: int, chosen: RetrySettings) -> None:
    """Each pause is at least as long as the one before, and none is longer than the longest."""
    assert step_seconds(attempts, chosen) <= step_seconds(attempts + 1, chosen) <= chosen.max_seconds


@given(st.floats(0, 1), settings)
def test_attempts_of_a_message_that_always_fails_keep_their_distance(jitter: float, chosen: RetrySettings) -> None:
    """None follows another within less than the shortest step, but for the last, which is at the expiry."""
    now, attempts = SPOOLED, 0
    shortest = min(chosen.first_seconds, chosen.max_seconds)
    for _ in range(200):
        due = next_attempt(attempts, SPOOLED, now, jitter, chosen)
        if due is None:
            return
        assert due >= now
        if attempts and due < after(chosen.expire_seconds):
            assert due - now >= timedelta(seconds=shortest) - timedelta(microseconds=2)
        now, attempts = due, attempts + 1


@pytest.mark.parametrize(
    ("age", "warned", "due"),
    [(0, False, False), (14_399, False, False), (14_400, False, True), (14_400, True, False), (432_000, False, False)],
)
def test_delay_warning_is_due_once_while_there_is_time(age: float, warned: bool, due: bool) -> None:
    """From four hours on, if it was not sent before; at the expiry there is a failure to tell instead."""
    assert delay_warning_due(SPOOLED, after(age), warned=warned, settings=DEFAULT) is due


def test_delay_warning_can_be_switched_off() -> None:
    """No seconds, no warning."""
    assert not delay_warning_due(SPOOLED, after(20_000), warned=False, settings=RetrySettings(warn_seconds=0))

"""The receiving thread tells the consumer at once of a message that comes alone, and of many at once under load."""

from dataplane.sources.postgres.pace import (
    FULL_BYTES,
    GATHER_SECONDS,
    NAP_SECONDS_MAX,
    STEADY_READS,
    TELL_BYTES_MAX,
    TELL_SECONDS_MAX,
    Pace,
    Step,
)


def steady(pace: Pace, now: float = 0.0) -> float:
    """Read often enough that it is load. Return the time."""
    for _ in range(2 * STEADY_READS):
        now += GATHER_SECONDS
        step = pace.after(100, now)
    assert step is Step.GATHER
    pace.told(now)
    return now


def test_a_message_that_comes_alone_is_told_at_once() -> None:
    """However large it is."""
    for size in (100, 10 * FULL_BYTES):
        pace = Pace()
        assert pace.after(size, 5.0) is Step.WAIT
        assert pace.told(5.0)
        assert not pace.told(5.0)


def test_a_steady_flow_is_gathered() -> None:
    """A full buffer is read on at once, and the consumer hears of it after some bytes or time."""
    pace = Pace()
    now = steady(pace)
    assert pace.after(FULL_BYTES, now) is Step.READ
    assert not pace.is_due(now)
    assert pace.is_due(now + TELL_SECONDS_MAX)
    assert pace.after(TELL_BYTES_MAX, now) is Step.READ
    assert pace.is_due(now)


def test_the_end_of_a_flow_is_told_at_once() -> None:
    """The first read that finds nothing ends it."""
    pace = Pace()
    now = steady(pace)
    assert pace.after(100, now + GATHER_SECONDS) is Step.GATHER
    assert pace.after(0, now + 2 * GATHER_SECONDS) is Step.WAIT
    assert pace.told(now + 2 * GATHER_SECONDS)
    assert pace.after(100, now + 1.0) is Step.WAIT


def flowing(pace: Pace) -> float:
    """Read so much that a window that closes is worth the wait. Return the time."""
    now = 0.0
    while pace.after(10 * FULL_BYTES, now, closes_window=True) is not Step.GATHER:
        now += GATHER_SECONDS
    return now


def test_a_nap_grows_until_the_server_has_to_wait() -> None:
    """A read that ends within a message shows that it had; while it has, the nap shrinks, at last to nothing."""
    pace = Pace()
    now = flowing(pace)
    for _ in range(10):
        now += pace.gather_seconds
        assert pace.after(10 * FULL_BYTES, now, closes_window=True) is Step.GATHER
    assert pace.gather_seconds == NAP_SECONDS_MAX
    now += pace.gather_seconds
    assert pace.after(10 * FULL_BYTES, now, closes_window=True, cut=True) is Step.GATHER
    assert pace.gather_seconds < NAP_SECONDS_MAX
    steps = [pace.after(10 * FULL_BYTES, now, closes_window=True, cut=True) for _ in range(100)]
    assert steps[-1] is Step.READ


def test_a_flow_that_pauses_is_not_waited_for_at_once() -> None:
    """A waiting reader would be woken by a single row. But the consumer is told, and soon the thread waits."""
    pace = Pace()
    now = flowing(pace)
    pace.told(now)
    pace.after(10 * FULL_BYTES, now, closes_window=True)
    assert pace.after(0, now + GATHER_SECONDS, closes_window=True) is Step.LINGER
    assert pace.told(now + GATHER_SECONDS)
    assert pace.after(0, now + 0.1, closes_window=True) is Step.WAIT


def test_a_light_flow_naps_no_longer_than_without_a_window() -> None:
    """Single transactions, hundreds a second, are not made to wait for more."""
    pace = Pace()
    now = flowing(pace) + 1.0
    for _ in range(1000):
        now += 0.002
        assert pace.after(400, now, closes_window=True) in (Step.WAIT, Step.GATHER)
        assert pace.gather_seconds == GATHER_SECONDS
        now += GATHER_SECONDS
        assert pace.after(0, now, closes_window=True) is Step.WAIT

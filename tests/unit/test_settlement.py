"""The long way of an acknowledgement, as a pure decision.

The worked examples of the protocol run against the real server (tests/e2e/test_acknowledgement.py);
here are the properties that hold for any call.
"""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from queue_server.domain.settlement import (
    ALREADY_COMMITTED,
    STALE_LEASE,
    UNRESOLVABLE,
    AckItem,
    AckStatus,
    Cursor,
    Settlement,
    settle,
)

LEASE = uuid.UUID(int=1)
OTHER = uuid.UUID(int=2)
START, END = 10, 15


def cursor(**fields: object) -> Cursor:
    values: dict[str, object] = {
        "committed_offset": START, "lease_id": LEASE, "lease_end": END, "lease_live": True,
        "attempt": 1, "attempt_offset": START, "retry_count": 0, "retry_offset": -1,
        "settled_lease_id": None, "settled_from": None, "settled_end": None,
    }  # fmt: skip
    return Cursor(**(values | fields))  # type: ignore[arg-type]


def run(*items: tuple[int | None, str], limit: int = 3, lease: uuid.UUID | None = LEASE,
        **fields: object) -> Settlement:  # fmt: skip
    return settle(
        cursor(**fields),
        [AckItem(offset, AckStatus(status), lease, "why") for offset, status in items],
        limit,
    )


items = st.lists(
    st.builds(
        AckItem,
        st.one_of(st.none(), st.integers(START - 3, END + 3)),
        st.sampled_from(AckStatus),
        st.sampled_from([None, LEASE, OTHER]),
        st.just("why"),
    ),
    max_size=12,
)
cursors = st.builds(
    cursor,
    lease_live=st.booleans(),
    retry_count=st.integers(0, 4),
    retry_offset=st.integers(-1, END),
)


@given(cursors, items, st.integers(0, 3))
def test_a_cursor_never_moves_back_and_never_past_what_it_may(
    before: Cursor, own: list[AckItem], limit: int
) -> None:
    live = before.lease_live
    outcome = settle(before, own, limit)
    after = outcome.cursor
    assert after.committed_offset >= START
    if live:
        assert after.committed_offset <= END
    assert len(outcome.results) == len(own)


@given(cursors, items, st.integers(0, 3))
def test_a_nack_is_never_swallowed(before: Cursor, own: list[AckItem], limit: int) -> None:
    """A message that was nacked under the live lease is redelivered or a dead letter."""
    live = before.lease_live
    outcome = settle(before, own, limit)
    dead = {letter.offset for letter in outcome.dead_letters}
    if not live:
        assert not dead
        return
    for item, result in zip(own, outcome.results, strict=True):
        if item.status is AckStatus.COMPLETED or not result.success:
            continue
        assert item.offset is not None
        assert item.offset >= outcome.cursor.committed_offset or item.offset in dead
        assert outcome.released


@given(cursors, items, st.integers(0, 3))
def test_success_carries_no_error_and_refusal_changes_nothing(
    before: Cursor, own: list[AckItem], limit: int
) -> None:
    committed = before.committed_offset
    outcome = settle(before, own, limit)
    for result in outcome.results:
        assert (result.error is None) == result.success
    if not any(result.success and not result.noop for result in outcome.results):
        assert not outcome.changed
        assert outcome.cursor.committed_offset == committed


def test_refusals_say_what_clients_look_for() -> None:
    assert "lease" in STALE_LEASE
    assert "unresolv" in UNRESOLVABLE
    assert "committed" in ALREADY_COMMITTED


def test_the_budget_is_charged_once_a_call_and_given_back_behind_the_message() -> None:
    outcome = run((11, "failed"), (12, "failed"), (13, "failed"))
    assert (outcome.cursor.retry_count, outcome.cursor.retry_offset) == (1, 11)
    assert outcome.cursor.committed_offset == START
    # Passing the message gives the budget back: the next poison message has its own.
    outcome = run((11, "completed"), (12, "failed"), retry_count=3, retry_offset=11)
    assert (outcome.cursor.retry_count, outcome.cursor.retry_offset) == (1, 12)
    assert not outcome.dead_letters


def test_a_used_up_budget_buries_each_failed_item_with_the_count() -> None:
    outcome = run((10, "failed"), (11, "failed"), (12, "completed"), retry_count=3, retry_offset=10)
    assert [(d.offset, d.retry_count) for d in outcome.dead_letters] == [(10, 3), (11, 3)]
    assert outcome.cursor.committed_offset == 13
    assert outcome.released


def test_a_second_dead_letter_behind_an_unmentioned_message_is_redelivered() -> None:
    outcome = run((10, "dlq"), (12, "dlq"))
    assert [d.offset for d in outcome.dead_letters] == [10]
    assert outcome.cursor.committed_offset == 11
    outcome = run((10, "dlq"), (12, "dlq"), (13, "completed"))
    assert [d.offset for d in outcome.dead_letters] == [10, 12]


def test_the_strongest_status_wins_for_a_message_named_twice() -> None:
    outcome = run((10, "completed"), (10, "retry"))
    assert outcome.cursor.committed_offset == START
    assert outcome.released
    outcome = run((10, "failed"), (10, "dlq"))
    assert [d.offset for d in outcome.dead_letters] == [10]
    assert outcome.cursor.retry_count == 0


def test_a_finished_batch_is_remembered_for_a_resent_ack() -> None:
    outcome = run((14, "completed"), (10, "completed"))
    after = outcome.cursor
    assert (after.settled_lease_id, after.settled_from, after.settled_end) == (LEASE, START, END)
    again = settle(after, [AckItem(12, AckStatus.COMPLETED, LEASE)], 3)
    assert again.results[0].success
    assert again.results[0].lease_released
    assert not again.results[0].noop
    nack = settle(after, [AckItem(12, AckStatus.FAILED, LEASE)], 3)
    assert nack.results[0].error == STALE_LEASE


def test_a_batch_that_ended_with_a_dead_letter_is_remembered_too() -> None:
    outcome = run((10, "completed"), (14, "dlq"))
    assert outcome.released
    again = settle(outcome.cursor, [AckItem(10, AckStatus.COMPLETED, LEASE)], 3)
    assert again.results[0].success
    assert again.results[0].lease_released
    # One that was given back for redelivery is not.
    outcome = run((10, "dlq"))
    assert outcome.released
    again = settle(outcome.cursor, [AckItem(10, AckStatus.COMPLETED, LEASE)], 3)
    assert again.results[0].error == STALE_LEASE


def test_an_ack_after_the_expiry_does_not_carry_the_delivery_count_on() -> None:
    outcome = run((14, "completed"), lease=None, lease_live=False)
    assert outcome.cursor.committed_offset == END
    assert outcome.cursor.attempt_offset != END  # the next claim is the first there
    outcome = run((12, "completed"))
    assert (outcome.cursor.attempt, outcome.cursor.attempt_offset) == (1, 13)

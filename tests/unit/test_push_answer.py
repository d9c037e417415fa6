"""A push's answer written by columns is the one made of an object for each message."""

import uuid

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from queue_server.broker.push import PushRequest, _Lane
from queue_server.domain.message import NewMessage
from queue_server.domain.names import PartitionName, PartitionRef, QueueName

PARTITION = PartitionRef(QueueName('q"\\'), PartitionName("p"), str(uuid.UUID(int=1)), 140_737)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.none() | st.text(), st.none() | st.uuids()), min_size=1, max_size=9),
    st.integers(0, 30_000),
)
def test_both_ways_say_the_same(
    items: list[tuple[str | None, uuid.UUID | None]], offset: int
) -> None:
    messages = [
        NewMessage("q", msgspec.Raw(b"1"), "p", id_, trace_id)
        for id_, trace_id in {
            id_ or number: (id_, trace) for number, (id_, trace) in enumerate(items)
        }.values()
    ]
    indexes = list(range(len(messages)))
    request = PushRequest(
        messages, [None] * len(messages), [(PARTITION, indexes)], [], [None] * len(messages)
    )
    request.lanes = request.known
    lane = _Lane(PARTITION, None)
    lane.add(request, indexes)
    lane.build()
    lane.report(offset, as_text=True)
    lane.report(offset)
    assert request.text == msgspec.json.encode(request.results)

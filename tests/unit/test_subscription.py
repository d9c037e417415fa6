"""Where a time in a request leads to."""

import pytest

from queue_server.domain.subscription import parse_time


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "9999-12-31", "soon", ""]
)
def test_a_time_without_room_around_it_is_none(text: str) -> None:
    assert parse_time(text) is None

"""What waits for a reader of events is bounded."""

import asyncio

from queue_server.http.live import WAITING_BYTES_MAX, Socket


class Stopped:
    """A reader that takes nothing until told to."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.taken: list[str] = []

    async def send_str(self, data: str) -> None:
        await self.goes_on.wait()
        self.taken.append(data)


async def test_a_reader_that_stops_falls_behind() -> None:
    reader = Stopped()
    socket = Socket(reader)
    sending = asyncio.create_task(socket.send_all())
    frame = "x" * 1000
    for _ in range(WAITING_BYTES_MAX // 1000):
        socket.put(frame)
        await asyncio.sleep(0)
    assert not socket.fell_behind.is_set()
    socket.put(frame)
    socket.put(frame)
    assert socket.fell_behind.is_set()
    assert reader.taken == []
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


async def test_a_reader_that_goes_on_gets_all_in_order() -> None:
    reader = Stopped()
    socket = Socket(reader)
    sending = asyncio.create_task(socket.send_all())
    for number in range(100):
        socket.put(str(number))
    reader.goes_on.set()
    async with asyncio.timeout(5):
        while len(reader.taken) < 100:
            await asyncio.sleep(0)
    assert reader.taken == [str(number) for number in range(100)]
    assert not socket.fell_behind.is_set()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)

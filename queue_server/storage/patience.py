"""A connection that waits for its answers at a fraction of what psycopg's own way costs, and not
for ever.

A network can lose a connection without a word: a cable, a firewall that forgets, a pooler that
hangs. Nothing would ever come back, and a flush that waits for it holds up all that come after. So
a connection is given up when the database says nothing for longer than a statement may run.

psycopg puts the socket into the event loop for each wait and takes it out again, with a timer
beside it. A flush of one message spends more on that than on its statement, so here the socket
stays in the loop. It is a duplicate of libpq's, which is closed by libpq whenever it gives the
connection up: the next file to get its number would then not be watched, as the loop would believe
that it is. The duplicate is closed by nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg.waiting import READY_R, WAIT_W, Ready, Wait, wait_async

from queue_server.storage.failures import Silence

T = TypeVar("T")

# For the server to end a statement whose caller has gone, before the connection is given up.
_STOP_S = 5.0


class _Ear:
    """Hears when there is something to read from a socket, for one who waits at a time."""

    def __init__(self, descriptor: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._listens = False
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Until there is something, or the other side has hung up, or `wake`."""
        if self._listens and self._poll.poll(0):
            # uvloop tells of a socket with an error once and listens no more; such a socket is
            # ready for ever.
            self._stop()
        if not self._listens:
            self._loop.add_reader(self._socket, self._hear)
            self._listens = True
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Tell who waits to look for himself."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def hang_up(self) -> None:
        """As if the other side had done it."""
        # It may have done so.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.wake()

    def close(self) -> None:
        self._stop()
        self._socket.close()
        self.wake()

    # For a connection that nobody closes: its end is heard, and then nothing holds this any more.
    def __del__(self) -> None:
        self._socket.close()

    def _hear(self) -> None:
        if self._waiter is None:
            # Nobody reads it: a notice, or the end. The loop would tell it again and again.
            self._stop()
        self.wake()

    def _stop(self) -> None:
        if self._listens:
            self._listens = False
            self._loop.remove_reader(self._socket)


class PatientConnection(psycopg.AsyncConnection[TupleRow]):
    """A connection that waits *patience_s* for an answer and no longer."""

    patience_s = 60.0
    _ear: _Ear | None = None
    _hung_up = False

    async def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """What *gen* comes to; it is one of psycopg's, that says what it waits for.

        Errors: `Silence` when nothing came; the connection is then closed.
        """
        if args or kwargs:
            # Who brings a limit of his own is not known here.
            return await super().wait(gen, *args, **kwargs)
        timer = None
        self._hung_up = False
        try:
            wanted = next(gen)
            ear = self._ear = self._ear or _Ear(self.pgconn.socket)
            timer = asyncio.get_running_loop().call_later(self.patience_s, self._hang_up)
            while not wanted & WAIT_W:
                await ear.wait()
                wanted = gen.send(READY_R)
            # More than the system takes at once, which is rare: psycopg waits for both directions.
            return await super().wait(_resumed(gen, wanted))
        except StopIteration as end:
            result: T = end.value
            return result
        except psycopg.OperationalError as exc:
            if self._hung_up:
                raise Silence(f"no answer within {self.patience_s} s") from exc
            raise
        except OSError as exc:
            raise psycopg.OperationalError(f"cannot wait for an answer: {exc}") from exc
        except asyncio.CancelledError:
            await self._stop(gen)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            # Whoever has no use for a lost connection just forgets it.
            if self.closed:
                self._close_ear()

    async def close(self) -> None:
        self._close_ear()
        await super().close()

    def _close_ear(self) -> None:
        if self._ear is not None:
            self._ear.close()
            self._ear = None

    def _hang_up(self) -> None:
        # libpq finds the connection closed.
        self._hung_up = True
        if self._ear is not None:
            self._ear.hang_up()

    async def _stop(self, gen: PQGen[Any]) -> None:
        """Have the server end what it does for *gen*, whose caller has gone, or hang up."""
        if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
            return
        try:
            async with asyncio.timeout(_STOP_S):
                await self.cancel_safe(timeout=_STOP_S)
                await wait_async(gen, self.pgconn.socket, interval=_STOP_S)
        except psycopg.errors.QueryCanceled:
            pass
        except BaseException as exc:
            # In what state it is nobody knows.
            self.pgconn.finish()
            if not isinstance(exc, Exception):
                raise


def _resumed(gen: PQGen[T], wanted: Wait) -> Generator[Wait, Ready | int, T]:
    """*gen*, which has said already what it waits for."""
    while True:
        ready = yield wanted
        try:
            wanted = gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result

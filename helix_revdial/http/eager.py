# -*- test-case-name: tests.http.test_eager -*-
"""
Writing to a socket at once.

A transport of Twisted writes in the reactor's next turn: it tells epoll that it wants
to, waits for epoll's word, writes, and takes its wish back.  An answer mostly fits into
the socket's buffer, and then the first of these steps is enough.

What is written here comes after all that was written before, and before all that is
written later; what the socket does not take goes the transport's ordinary way.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.tcp import Connection


def writeEagerly(transport: Any, pieces: list[bytes]) -> None:
    """
    Write.

    @param transport: Any transport; only a plain socket that is connected and has
        nothing waiting is written to at once.
    """
    if (
        not isinstance(transport, Connection)
        or transport.TLS
        or not transport.connected
        or transport.disconnecting
        or transport._writeDisconnecting
        or transport._writeDisconnected
        or transport.dataBuffer
        or transport._tempDataBuffer
    ):
        transport.writeSequence(pieces)
        return
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if not data:
        return
    # At most SEND_LIMIT of it; an exception stands for a connection that is lost.
    sent = transport.writeSomeData(data)
    if not isinstance(sent, int):
        # The reactor finds that out by itself, in its own turn.
        sent = 0
    if sent < len(data):
        transport.write(data[sent:] if sent else data)

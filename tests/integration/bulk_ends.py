"""
Both ends of a bulk stream, in a process of their own: a service that sends numbered
blocks, and its reader, who reads when it is told to.

    python -m tests.integration.bulk_ends

It prints the port of the service.  Then each line of standard input is a command, and
is answered with a line:

  - C{open HOST PORT}: the reader connects there.
  - C{read N}: it reads so many blocks, each of which must be the next one.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading

BLOCK = 256 * 1024

_BODY = bytes(range(256)) * (BLOCK // 256)


class Numbered:
    """The blocks, one after the other."""

    def __init__(self) -> None:
        self._number = 0
        self._block = bytearray(_BODY)

    def next(self) -> bytearray:
        """The next; good until the one after it is asked for."""
        struct.pack_into(">Q", self._block, 0, self._number)
        self._number += 1
        return self._block


def serve(listening: socket.socket) -> None:
    """Send to each that connects, one at a time, for as long as it reads."""
    while True:
        connection, _ = listening.accept()
        blocks = Numbered()
        try:
            while True:
                connection.sendall(blocks.next())
        except OSError:
            connection.close()


def main() -> None:
    """Do what is asked."""
    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listening,), daemon=True).start()
    print(listening.getsockname()[1], flush=True)
    reader: socket.socket | None = None
    expected, room = Numbered(), bytearray(BLOCK)
    for line in sys.stdin:
        command, *words = line.split()
        if command == "open":
            reader = socket.create_connection((words[0], int(words[1])))
        else:
            assert reader is not None
            for _ in range(int(words[0])):
                view = memoryview(room)
                while view:
                    size = reader.recv_into(view)
                    assert size, "the stream ended"
                    view = view[size:]
                assert room == expected.next(), "another block than the next one"
        print("done", flush=True)


if __name__ == "__main__":
    main()

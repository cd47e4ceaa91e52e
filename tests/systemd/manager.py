"""A service manager's socket, opened by the test."""

from __future__ import annotations

import array
import socket


class ManagerSocket:
    """
    Receives what L{helix_revdial.systemd.notify.Notifier} sends.

    @ivar address: What C{NOTIFY_SOCKET} is to say.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def next(self) -> tuple[dict[str, str], list[int]] | None:
        """The next message and its descriptors, if one has come."""
        try:
            data, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(4 * 253))
        except BlockingIOError:
            return None
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) - len(content) % 4])
        lines = data.decode().split("\n")
        return dict(line.split("=", 1) for line in lines), list(descriptors)

    def messages(self) -> list[dict[str, str]]:
        """Every message that has come by now."""
        found = []
        while (message := self.next()) is not None:
            found.append(message[0])
        return found

    def close(self) -> None:
        self.socket.close()

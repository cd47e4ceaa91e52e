# -*- test-case-name: tests.cli.test_stdio -*-
"""
Standard input and output as the transport of a protocol.

Twisted's own has no way to drop everything at once, reads 8 KiB at a time, and does not
tell that nobody reads standard output; this one does what a relay asks of a transport:
backpressure both ways, and each direction's end on its own.

Invariants:

  - The end of standard input is C{readConnectionLost}; standard output goes on.
  - C{loseWriteConnection} closes standard output after what was written, so that its
    reader sees an end; standard input goes on.
  - A reader of standard output that went away ends everything: L{StandardStreams.deaf}.
  - What its reader was not given of what was written is told: L{StandardStreams.cutOff}.
  - What was changed about the descriptors, which others may share, is changed back.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable
from typing import Any

from twisted.internet import error, main
from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IConsumer, IHalfCloseableProtocol, IPushProducer, ITransport
from twisted.python.failure import Failure
from zope.interface import implementer

READ = 256 * 1024
"""Bytes of one read."""

_LATER = (errno.EAGAIN, errno.EINTR)


class _Reader(FileDescriptor):
    """Standard input."""

    connected = 1

    def __init__(self, reactor: Any, owner: StandardStreams, descriptor: int) -> None:
        super().__init__(reactor)
        self._owner = owner
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def doRead(self) -> Any:
        try:
            data = os.read(self._descriptor, READ)
        except OSError as failed:
            # A terminal that has gone says EIO.
            return None if failed.errno in _LATER else main.CONNECTION_DONE
        if not data:
            return main.CONNECTION_DONE
        self._owner.received(data)
        return None

    def readConnectionLost(self, reason: Failure) -> None:
        self.connectionLost(reason)

    def connectionLost(self, reason: Failure) -> None:
        if self.connected:
            super().connectionLost(reason)
            self._owner.inputEnded()


class _Writer(FileDescriptor):
    """Standard output."""

    connected = 1

    def __init__(self, reactor: Any, owner: StandardStreams, descriptor: int) -> None:
        super().__init__(reactor)
        self._owner = owner
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    @property
    def held(self) -> int:
        """Bytes that the descriptor has not taken."""
        return len(self.dataBuffer) - self.offset + self._tempDataLen

    def doRead(self) -> None:
        """Never: a pipe is watched for its reader only."""

    def writeSomeData(self, data: bytes) -> int | BaseException:
        if not data:
            return 0
        try:
            return os.write(self._descriptor, data)
        except OSError as failed:
            return 0 if failed.errno in _LATER else main.CONNECTION_LOST

    def connectionLost(self, reason: Failure) -> None:
        if self.connected:
            asked = bool(self.disconnecting)
            super().connectionLost(reason)
            self._owner.outputEnded(asked)


@implementer(ITransport, IConsumer, IPushProducer)
class StandardStreams:
    """
    The transport.

    @ivar deaf: Whether the reader of standard output went away.
    @ivar cutOff: Whether what was written was dropped before its reader took it.
    """

    def __init__(self, reactor: Any, inputDescriptor: int = 0, outputDescriptor: int = 1) -> None:
        """
        @param reactor: Watches the descriptors.
        @param inputDescriptor: The descriptor that is read.
        @param outputDescriptor: The descriptor that is written, and replaced when it is closed.
        """
        self.deaf = False
        self.cutOff = False
        self._output = outputDescriptor
        self._reader = _Reader(reactor, self, inputDescriptor)
        self._writer = _Writer(reactor, self, outputDescriptor)
        self._protocol: Any = None
        self._over = False
        self._inputEnded = False
        self._outputEnded = False
        mode = os.fstat(outputDescriptor).st_mode
        self._isSocket = stat.S_ISSOCK(mode)
        # A terminal or a file is not made non-blocking: others share it, and it takes
        # what is written.
        isPipe = stat.S_ISFIFO(mode)
        self._wasBlocking = (isPipe or self._isSocket) and os.get_blocking(outputDescriptor)
        if self._wasBlocking:
            os.set_blocking(outputDescriptor, False)
        self._watches = isPipe

    def start(self, protocol: Any) -> None:
        """Connect C{protocol}, and read."""
        self._protocol = protocol
        if self._watches:
            self._writer.startReading()
        self._reader.startReading()
        protocol.makeConnection(self)

    # What the descriptors tell.

    def received(self, data: bytes) -> None:
        """Bytes from standard input."""
        self._protocol.dataReceived(data)

    def inputEnded(self) -> None:
        """The end of standard input."""
        self._inputEnded = True
        if self._over:
            return
        if self._outputEnded:
            self._lost(error.ConnectionDone())
        else:
            IHalfCloseableProtocol(self._protocol).readConnectionLost()

    def outputEnded(self, asked: bool) -> None:
        """Standard output takes no more."""
        self._outputEnded = True
        self._closeOutput()
        if self._over:
            return
        if not asked:
            self.deaf = True
            self._lost(error.ConnectionLost("nobody reads standard output"))
        elif self._inputEnded:
            self._lost(error.ConnectionDone())

    def _lost(self, reason: Exception) -> None:
        self._over = True
        for one in (self._reader, self._writer):
            one.connectionLost(Failure(reason))
        self._protocol.connectionLost(Failure(reason))

    def _closeOutput(self) -> None:
        """Show an end to the reader; the descriptor's number stays taken."""
        if self._isSocket:
            with socket.socket(fileno=os.dup(self._output)) as found:
                try:
                    found.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # it is gone already
        if self._wasBlocking:
            os.set_blocking(self._output, True)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._output)
        os.close(nowhere)

    # What the protocol asks.

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def unsentBytes(self) -> int:
        """What was written and the reader of standard output has not taken."""
        return self._writer.held

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self._writer.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._writer.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self._writer.unregisterProducer()

    def pauseProducing(self) -> None:
        self._reader.pauseProducing()

    def resumeProducing(self) -> None:
        self._reader.resumeProducing()

    def stopProducing(self) -> None:
        self.loseConnection()

    def loseWriteConnection(self) -> None:
        """Close standard output after what was written."""
        self._writer.loseConnection()

    def loseConnection(self) -> None:
        """Close both, after what was written."""
        if self._over:
            return
        if not self._inputEnded:
            self._inputEnded = True
            self._reader.disconnecting = 1
            self._reader.stopReading()
        if self._outputEnded:
            self._lost(error.ConnectionDone())
        else:
            self._writer.loseConnection()

    def abortConnection(self) -> None:
        """Drop everything at once."""
        if not self._over:
            self.cutOff = self.unsentBytes() > 0
            self._lost(error.ConnectionAborted())

    def getPeer(self) -> Any:
        return None

    def getHost(self) -> Any:
        return None


__all__ = ["StandardStreams"]

"""
Paths between an agent and a server that do what paths do: swallow, answer in
somebody's place, end what is idle.

L{RoutedPath} is a router in a network namespace of its own, between the machine and a
namespace for agents; what it does not forward, nobody hears of.  L{Middlebox} ends TCP
on both sides, as proxies do, so that to either kernel everything looks well.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable


class RoutedPath:
    """
    A router between us and agents.

    @ivar here: Our address on the path.
    @ivar there: The agents' address.
    @ivar prefix: Runs a program on the agents' side.
    """

    def __init__(self) -> None:
        number = os.getpid()
        self._router, self._space = f"hr{number}", f"ha{number}"
        self._device = f"hd{number}"
        network = f"10.{101 + (number >> 8) % 90}.{number % 256}"
        self.here, self.there = f"{network}.1", f"{network}.130"
        self._nets = {"here": f"{network}.0/30", "there": f"{network}.128/30"}
        self._gateways = {"here": f"{network}.2", "there": f"{network}.129"}
        self.prefix = ("ip", "netns", "exec", self._space)

    def open(self) -> None:
        """Make it."""
        ip = self._ip
        ip("netns", "add", self._router)
        ip("netns", "add", self._space)
        ip("link", "add", self._device, "type", "veth", "peer", "left", "netns", self._router)
        ip("-n", self._router, "link", "add", "right", "type", "veth", "peer", "eth0",
           "netns", self._space)  # fmt: skip
        ip("addr", "add", f"{self.here}/30", "dev", self._device)
        ip("link", "set", self._device, "up")
        for device, side in (("left", "here"), ("right", "there")):
            ip("-n", self._router, "addr", "add", f"{self._gateways[side]}/30", "dev", device)
            ip("-n", self._router, "link", "set", device, "up")
        ip("netns", "exec", self._router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        ip("-n", self._space, "addr", "add", f"{self.there}/30", "dev", "eth0")
        ip("-n", self._space, "link", "set", "eth0", "up")
        ip("-n", self._space, "link", "set", "lo", "up")
        ip("-n", self._space, "route", "add", "default", "via", self._gateways["there"])
        ip("route", "add", self._nets["there"], "via", self._gateways["here"])

    def close(self) -> None:
        """Take it away."""
        for space in (self._space, self._router):
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        subprocess.run(["ip", "link", "del", self._device], capture_output=True)

    def lose(self, towards: str) -> None:
        """From now on nothing arrives C{"here"} or C{"there"}, and nobody is told."""
        address = self.here if towards == "here" else self.there
        self._ip("-n", self._router, "route", "add", "blackhole", f"{address}/32")

    def mend(self) -> None:
        """Let everything through again."""
        for address in (self.here, self.there):
            subprocess.run(
                ["ip", "-n", self._router, "route", "del", "blackhole", f"{address}/32"],
                capture_output=True,
            )

    def move(self) -> None:
        """The agents' machine has another address from now on, as on another network."""
        other = self._gateways["there"].rsplit(".", 1)[0]
        ip = self._ip
        ip("-n", self._router, "addr", "add", f"{other}.133/30", "dev", "right")
        ip("-n", self._space, "addr", "del", f"{self.there}/30", "dev", "eth0")
        ip("-n", self._space, "addr", "add", f"{other}.134/30", "dev", "eth0")
        ip("-n", self._space, "route", "add", "default", "via", f"{other}.133")
        ip("route", "add", f"{other}.132/30", "via", self._gateways["here"])

    def _ip(self, *arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, (arguments, done.stderr)


class Middlebox:
    """
    Ends TCP on both sides and passes bytes on, until it is told otherwise.

    @ivar port: Where agents reach it.
    @ivar pairs: What goes through, in the order it came.
    @ivar shut: Whether it swallows what comes from now on, too.
    """

    def __init__(self, host: str, port: int, idle: float | None = None) -> None:
        """
        @param host: The server.
        @param idle: Seconds after which a pair that is silent both ways is ended.
        """
        self._to = (host, port)
        self._idle = idle
        self.pairs: list[Pair] = []
        self.shut = False
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(1024)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """What an agent is told."""
        return f"http://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
                far = socket.create_connection(self._to)
            except OSError:
                return
            self.pairs.append(Pair(near, far, self._idle, self.shut))

    def stop(self) -> None:
        """End everything."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for pair in self.pairs:
            pair.end()


class Pair:
    """
    One connection through a L{Middlebox}.

    @ivar swallow: Whether it passes nothing on, in either direction.
    @ivar answer: What it says in the peer's place to what it swallows.
    @ivar bytes: How many have passed, both ways together.
    """

    def __init__(
        self, near: socket.socket, far: socket.socket, idle: float | None, swallow: bool
    ) -> None:
        self.swallow = swallow
        self.answer: Callable[[bytes], bytes] | None = None
        self.ended = False
        self.bytes = 0
        self._sides = (near, far)
        self._idle = idle
        self._last = time.monotonic()
        for source, sink in ((near, far), (far, near)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()
        if idle is not None:
            threading.Thread(target=self._watch, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._last = time.monotonic()
                if not self.swallow:
                    self.bytes += len(data)
                    sink.sendall(data)
                elif self.answer is not None:
                    said = self.answer(data)
                    if said:
                        source.sendall(said)
            if not self.swallow:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            # An end that gives up is swallowed too: the other one finds out by itself.
            if not self.swallow:
                self.end()

    def _watch(self) -> None:
        assert self._idle is not None
        while not self.ended:
            if time.monotonic() - self._last > self._idle:
                self.end()
                return
            time.sleep(self._idle / 20)

    def end(self) -> None:
        """Close both sides."""
        self.ended = True
        for side in self._sides:
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Impostor:
    """
    Answers the control lines that it sees: each keep-alive by one of its own, each
    question by an echo, of the token that was asked before (it was seen on the path).
    """

    def __init__(self) -> None:
        self.said = 0
        self._before = "0123456789abcdef"

    def __call__(self, data: bytes) -> bytes:
        answers = []
        for line in data.splitlines():
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if message.get("command") == "keep-alive":
                answers.append({"command": "keep-alive"})
                answers.append({"command": "echo", "echo": self._before})
                self._before = message.get("echo", self._before)
        self.said += len(answers)
        return b"".join(json.dumps(each).encode() + b"\n" for each in answers)

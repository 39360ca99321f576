"""How the processes of a run learn that one of them has ended: a silent connection from the first to each other one.

The kernel closes the connections of a process that ends, be it by kill -9, so that its end is known at once, whatever
the others compute or wait for. One that stops by itself says why. Who then does not end within a grace is ended: a
GPU's queue waits for the dead for ever, and a preview may take an hour.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from traceback import format_exception_only
from typing import Any

from sfumato.errors import UserError

__all__ = ["GRACE", "Lifeline", "Lost"]

GRACE = 45.0  # seconds
_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # a machine that vanishes is noticed in 50 s


class Lost(UserError):
    """Other processes of the run are not there. `unheard`: the one that speaks for all is among them."""

    def __init__(self, what: str, *, unheard: bool) -> None:
        super().__init__(what)
        self.unheard = unheard


class Lifeline:
    """Process `rank` of `size` on its connections; `total` adds numbers over the processes."""

    def __init__(self, rank: int, size: int, total: Callable[[Sequence[float]], list[float]]) -> None:
        self.rank, self.size = rank, size
        self._lost: Lost | None = None
        self._news, self._over = threading.Event(), threading.Event()
        self._links = _connected(rank, size, total)
        self._thread = threading.Thread(target=self._listen, name="sfumato-lifeline", daemon=True)
        if self._links:
            self._thread.start()

    def lost(self) -> Lost | None:
        """What happened, if anything did. The news may come a moment after its consequences."""
        self._news.wait(5.0)
        return self._lost

    def part(self, error: BaseException) -> None:
        """Tell the others why this process leaves before the end."""
        if not isinstance(error, Lost):
            said = str(error) if isinstance(error, UserError) else format_exception_only(error)[0]
            self._tell(f"{self._name(self.rank)} has stopped: {said.strip().rstrip('.')[:2000]}.")

    def close(self) -> None:
        self._over.set()
        for link in self._links:
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        if self._links:
            self._thread.join()
        for link in self._links:
            link.close()

    def _name(self, rank: int) -> str:
        return f"Process {rank} of {self.size} (the first is 0)"

    def _listen(self) -> None:
        link: Any = wait(list(self._links))[0]
        words, peer = _read(link), self._links[link]
        reason = words or f"{self._name(peer)} has died without a word: killed, or out of memory?"
        self._tell(reason)
        self._lost = Lost(f"{reason} Go on from the last checkpoint with --resume.", unheard=peer == 0 and not words)
        self._news.set()
        if not self._over.wait(GRACE):
            print(f"sfumato: {self._lost}", file=sys.stderr, flush=True)
            os._exit(2)

    def _tell(self, words: str) -> None:
        for link in self._links:
            with suppress(OSError):  # it may be gone as well
                link.sendall(words.encode())
                link.shutdown(socket.SHUT_WR)


def _connected(rank: int, size: int, total: Callable[[Sequence[float]], list[float]]) -> dict[socket.socket, int]:
    """Connections, each with the rank at its other end. The key keeps strangers out."""
    server = socket.create_server(("", 0), backlog=size) if rank == 0 else None
    port, key = map(int, total([server.getsockname()[1], secrets.randbits(52)] if server else [0, 0]))
    links = {} if server else _dialled(port, f"{key:016} {rank:08}")
    count = int(total([len(links)])[0])
    if server:
        with server:
            links = _accepted(server, f"{key:016} ", count)
    for link in links:
        link.settimeout(None)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name in _ALIVE.keys() & vars(socket).keys():  # not every system has them
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), _ALIVE[name])
    return links


def _dialled(port: int, greeting: str) -> dict[socket.socket, int]:
    """The connection to the first process; none where a firewall forbids it."""
    try:
        link = socket.create_connection((os.environ.get("MASTER_ADDR", "localhost"), port), timeout=10)
        link.sendall(greeting.encode())
    except OSError:
        return {}
    return {link: 0}


def _accepted(server: socket.socket, password: str, count: int) -> dict[socket.socket, int]:
    links: dict[socket.socket, int] = {}
    server.settimeout(10)
    with suppress(TimeoutError):
        while len(links) < count:
            link, _ = server.accept()
            link.settimeout(5)
            with suppress(OSError):
                said = link.recv(25).decode("ascii", "replace")
                if said.startswith(password):
                    links[link] = int(said.removeprefix(password))
                    continue
            link.close()
    return links


def _read(link: socket.socket) -> str:
    """Everything until the other end closes."""
    words = b""
    with suppress(OSError):
        while piece := link.recv(4096):
            words += piece
    return words.decode("utf-8", "replace")

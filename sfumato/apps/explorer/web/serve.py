"""The server as long as somebody looks: a free port on 127.0.0.1, a browser, and a quiet end."""

from __future__ import annotations

import asyncio
import errno
import socket
import webbrowser
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from sfumato.apps.explorer.web.guard import Key
from sfumato.errors import UserError

__all__ = ["bound", "browse", "serve"]

TRIED = 50  # ports after the one that was asked for


def bound(port: int) -> socket.socket:
    """A socket of this machine alone, at `port` or the next free one; 0: any. Raises UserError."""
    for at in (port,) if port == 0 else range(port, min(port + TRIED, 65_536)):
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", at))
            one.listen(128)
        except OSError as error:
            one.close()
            if error.errno == errno.EACCES:
                raise UserError(f"port {at} is not for ordinary users: give --port from 1024 on.") from None
            if error.errno != errno.EADDRINUSE:
                raise UserError(
                    f"no server can be started on this machine ({error.strerror or 'no network'})."
                ) from None
            continue
        return one
    raise UserError(f"no port from {port} to {min(port + TRIED, 65_536) - 1} is free: give another with --port.")


def browse(address: str) -> bool:
    """Opens a browser; False where there is none."""
    try:
        return webbrowser.open(address)
    except (webbrowser.Error, OSError):
        return False


def serve(create: Callable[[Key], ASGIApp], door: socket.socket, key: Key, ready: Callable[[], None]) -> None:
    """Answers until Ctrl-C, which raises KeyboardInterrupt. `ready` is called when it begins."""
    settings = uvicorn.Config(
        create(key),
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
        lifespan="off",
        ws="none",
    )

    async def work() -> None:
        server = uvicorn.Server(settings)
        task = asyncio.create_task(server.serve(sockets=[door]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        ready()
        await task

    asyncio.run(work())

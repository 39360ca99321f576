"""Who may ask: only pages of this server, in the browser of who started it.

A page elsewhere can make a browser send requests to 127.0.0.1, and with a name that it points there (DNS rebinding)
also read the answers: so `Host` must be this server's own, and `Origin`, where a browser tells it, too. Other people on
the same machine can reach the port: so every answer but one sentence needs the key of the session, in a cookie that the
printed address leaves behind; and whatever is sent needs it in a header, which no foreign page can set.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "Key"]

NAMES = ("127.0.0.1", "localhost")
SAFE = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
LOCKED = "This is a data room: open the address that the terminal printed, with its key."


@dataclass(frozen=True)
class Key:
    """Of one session: the secret, and the port that it opens."""

    port: int
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def cookie(self) -> str:
        """Its name: cookies do not tell ports apart."""
        return f"sfumato-{self.port}"

    @property
    def hosts(self) -> frozenset[str]:
        return frozenset(f"{name}:{self.port}" for name in NAMES) | (
            frozenset(NAMES) if self.port == 80 else frozenset()
        )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/?key={self.secret}"

    @property
    def set_cookie(self) -> str:
        return f"{self.cookie}={self.secret}; Path=/; HttpOnly; SameSite=Strict"

    def fits(self, said: str | None) -> bool:
        return said is not None and hmac.compare_digest(said.encode(), self.secret.encode())


class Guard:
    """ASGI middleware: turns away what is not asked by this server's own page, and says how browsers are to treat the
    rest."""

    def __init__(self, app: ASGIApp, key: Key) -> None:
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        turned_away = self._answer(scope)
        entering = turned_away is None and self._typed(scope) is not None

        async def safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SAFE)
                headers.setdefault("Cache-Control", "no-store")
                if entering:
                    headers.append("Set-Cookie", self.key.set_cookie)
            await send(message)

        await (turned_away or self.app)(scope, receive, safely)

    def _answer(self, scope: Scope) -> Response | None:
        """What is said to those who may not come in; None: they may."""
        headers = Headers(scope=scope)
        if headers.get("host", "").lower() not in self.key.hosts:
            return PlainTextResponse("This server answers on 127.0.0.1 alone.", 403)
        if not self._from_here(headers):
            return JSONResponse({"error": "only the data room's own page may ask."}, 403)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return JSONResponse({"error": "there is no such request."}, 405)
        said = self._typed(scope)
        if not self.key.fits(_cookie(headers, self.key.cookie) if said is None else said):
            return PlainTextResponse(LOCKED, 403)
        if scope["method"] == "POST" and not self.key.fits(headers.get("x-sfumato-token")):
            return JSONResponse({"error": "this page is of an earlier session: reload it."}, 403)
        return None

    def _from_here(self, headers: Headers) -> bool:
        """No other origin, where the browser tells it; following a link to the page itself is allowed."""
        origin = headers.get("origin")
        if origin is not None:
            return origin.lower() in {f"http://{host}" for host in self.key.hosts}
        foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        return not foreign or headers.get("sec-fetch-mode") == "navigate"

    def _typed(self, scope: Scope) -> str | None:
        """The key in the address of the page, as it was printed."""
        said = parse_qs(scope["query_string"].decode("latin1")).get("key") if scope["path"] == "/" else None
        return said[0] if said else None


def _cookie(headers: Headers, name: str) -> str | None:
    try:
        jar = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return None
    return str(jar[name].value) if name in jar else None

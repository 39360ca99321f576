"""HTML as values: every text is escaped on its way in, every tag is closed, pictures go inside the page."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO

from PIL import Image

from sfumato.apps.report.facts import Pixels
from sfumato.data.pictures import to_pil

__all__ = ["Html", "el", "image", "join", "sources"]

VOID = frozenset(("meta", "img", "input", "br", "col"))
NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9:-]*\Z")
PROBES = 4  # pictures tried before all are encoded
SMALL = 128  # pixels a side up to which pictures stay as they are
WAYS: tuple[tuple[int, int], ...] = ((1024, 90), (512, 85), (384, 80), (256, 70), (160, 60), (96, 50), (64, 40))


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | int | None
Attributes = Mapping[str, str | int | bool | None]


def el(name: str, attributes: Attributes | None = None, *children: Child) -> Html:
    """An element. Children that are no Html are escaped; an attribute that is None or False is left out."""
    pairs = (_attribute(key, value) for key, value in (attributes or {}).items() if value not in (None, False))
    head = "".join((f"<{name}", *pairs, ">"))
    return Html(head) if name in VOID else Html(f"{head}{join(children)}</{name}>")


def _attribute(name: str, value: str | int | bool | None) -> str:
    if not NAME.match(name):
        raise ValueError(f"no attribute can be called {name!r}")
    return f" {name}" if value is True else f' {name}="{escaped(str(value))}"'


def escaped(text: str) -> str:
    """Without anything that a browser would obey, and without what no page may hold: control characters, halves of
    characters, marks that reorder the text around them."""
    clean = "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return html.escape(clean, quote=True)


def join(children: Iterable[Child]) -> Html:
    return Html("".join(c if isinstance(c, Html) else escaped(str(c)) for c in children if c is not None))


# -- pictures ----------------------------------------------------------------------------------------------------------


def sources(pictures: Sequence[Pixels], budget: int) -> list[str]:
    """data: addresses of pictures (H, W, C), together at most `budget` characters: small ones exactly as they are,
    larger ones as WebP, made smaller until they fit."""
    found = [_address(pixels, None) for pixels in pictures if max(pixels.shape[:2]) <= SMALL]
    if len(found) == len(pictures) and sum(map(len, found)) <= budget:
        return found
    for way in WAYS:
        some = [_address(pixels, way) for pixels in pictures[:: max(1, len(pictures) // PROBES)]]
        if way != WAYS[-1] and sum(map(len, some)) * len(pictures) > len(some) * budget:
            continue
        found = [_address(pixels, way) for pixels in pictures]
        if sum(map(len, found)) <= budget:
            break
    return found


def _address(pixels: Pixels, way: tuple[int, int] | None) -> str:
    picture, data = to_pil(pixels), BytesIO()
    if way is None:
        picture.save(data, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    side, quality = way
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    small = max(picture.size) <= SMALL and quality >= 80
    picture.convert("RGBA" if picture.mode == "RGBA" else "RGB").save(
        data, "WEBP", quality=quality, lossless=small, method=4
    )
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def image(source: str, alt: str, pixels: Pixels, *, lazy: bool = True, more: Attributes | None = None) -> Html:
    """An <img>; small pictures keep their pixels when they are enlarged."""
    h, w = pixels.shape[:2]
    kind = "crisp" if max(h, w) <= SMALL else None
    known: dict[str, str | int | bool | None] = {"src": source, "alt": alt, "width": w, "height": h, "class": kind}
    return el("img", {**known, "loading": "lazy" if lazy else None, **(more or {})})

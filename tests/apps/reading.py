"""A page as a test reads it: its elements, whether every tag is closed, its text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "img", "input", "br", "col"}


class Page(HTMLParser):
    """Raises AssertionError for tags that are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source, self.open, self.text = text, [], ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def charts(self) -> list[dict[str, Any]]:
        return [json.loads(str(a["data-chart"])) for _, a in self.elements if "data-chart" in a]

    def lines(self) -> dict[str, dict[int, float]]:
        """Every line of every chart by its name."""
        return {n: dict(zip(steps, values, strict=True)) for c in self.charts() for n, _, steps, values in c["lines"]}

    def sections(self) -> list[str]:
        return [str(a["id"]) for a in self.of("section")]

"""Words in captions and names, found by SQLite's FTS5.

Not by DuckDB's own `fts`: that is an extension which DuckDB downloads when it is first used, and nothing here is
downloaded. FTS5 is in the standard library's sqlite3, ranks by BM25, and knows phrases and beginnings of words.
Accents do not count ("cafe" finds "Café"), and a phrase also matches within longer names: counts of an artist's name
are upper bounds.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable
from contextlib import closing

import numpy as np

from sfumato.apps.explorer.table import Ids, clean
from sfumato.errors import UserError

__all__ = ["FullText", "expression"]

RANKED = 5000  # matches that are put in the order of their rank
WORDS_CAP = 64  # in a query
TEXT_CAP = 1000  # characters of a query
# Scripts without spaces between words, and pictograms: each character is a word of its own, and words become phrases.
ALONE = re.compile("([\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
                   "\u2190-\u2bff\U0001f000-\U0001faff])")  # fmt: skip
TERM = re.compile(r'(-?)(?:"([^"]*)"?|(\S+))')
KINDS = "L* N* Co So"


class FullText:
    """Captions and names of pictures by the words in them. Any number of threads may ask."""

    def __init__(self, rows: Iterable[tuple[int, str, str]]) -> None:
        """rows: (id, caption, name)."""
        self.base = sqlite3.connect(":memory:", check_same_thread=False)
        self.lock = threading.Lock()
        self.base.execute(
            "CREATE VIRTUAL TABLE words USING fts5(caption, name, content='', detail='full', "
            f"tokenize=\"unicode61 remove_diacritics 2 categories '{KINDS}'\")"
        )
        spaced = ((id, _spaced(caption), _spaced(name)) for id, caption, name in rows)
        with self.base:
            self.base.executemany("INSERT INTO words(rowid, caption, name) VALUES (?, ?, ?)", spaced)

    def find(self, text: str) -> tuple[Ids | None, Ids | None]:
        """(ids that match, the best first; ids that must not be there), each None where the text does not ask for it.
        Raises UserError for a text that is too long."""
        wanted, unwanted = expression(text)
        return self._ids(wanted) if wanted else None, self._ids(unwanted) if unwanted else None

    def _ids(self, match: str) -> Ids:
        """Ranked, unless they are so many that nobody reads them by rank. Names weigh less than captions."""
        plain = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid"
        ranked = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words, 1.0, 0.5), rowid"
        with self.lock, closing(self.base.cursor()) as cursor:
            found = np.array(cursor.execute(plain, (match,)).fetchall(), np.int64).reshape(-1)
            if len(found) > RANKED:
                return found
            return np.array(cursor.execute(ranked, (match,)).fetchall(), np.int64).reshape(-1)

    def close(self) -> None:
        with self.lock:
            self.base.close()


def expression(text: str) -> tuple[str, str]:
    """What the user typed as (what must be there, what must not) in the language of FTS5. Every word is quoted: no
    operator, column name or quote of the user's is ever one of FTS5's. Raises UserError."""
    if len(text) > TEXT_CAP:
        raise UserError(f"the search has {len(text):,} characters: {TEXT_CAP:,} are enough.")
    wanted, unwanted = list[str](), list[str]()
    for minus, phrase, word in TERM.findall(clean(text))[:WORDS_CAP]:
        term = _quoted(phrase or word, begins=word.endswith("*") and not phrase)
        if term:
            (unwanted if minus else wanted).append(term)
    return " AND ".join(wanted), " OR ".join(unwanted)


def _quoted(words: str, *, begins: bool) -> str:
    """A phrase of FTS5, "" where there is no letter, number or sign to look for."""
    spaced = "".join(c if c.isalnum() or unicodedata.category(c)[0] in "LNMCS" else " " for c in _spaced(words))
    spaced = " ".join(spaced.replace("\0", " ").split())
    if not any(unicodedata.category(c)[0] in "LN" or unicodedata.category(c) in ("So", "Co") for c in spaced):
        return ""
    return f'"{spaced}"' + "*" * begins


def _spaced(text: str) -> str:
    return ALONE.sub(r" \1 ", clean(text).replace("\0", " "))

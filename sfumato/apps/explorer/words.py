"""What captions say: their lengths, words, phrases, repetitions and scripts; and the words that tell a cluster."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

__all__ = ["about", "script", "telling", "tokens"]

TOKEN = re.compile(r"[^\W_]+(?:['’][^\W\d_]+)?")
LONGEST = 200  # words of a caption that are counted
# Words that are in every English sentence and tell nothing; other languages' are not left out.
ENGLISH = """a an and are as at be but by for from has have he her his if in into is it its of on or she that the their
them then there these they this to was were will with you your"""
COMMON = frozenset(ENGLISH.split())
SCRIPTS = (
    "ARABIC", "ARMENIAN", "BENGALI", "CJK", "CYRILLIC", "DEVANAGARI", "ETHIOPIC", "GEORGIAN", "GREEK", "GUJARATI",
    "HANGUL", "HEBREW", "HIRAGANA", "KANNADA", "KATAKANA", "KHMER", "LAO", "LATIN", "MALAYALAM", "MYANMAR", "TAMIL",
    "TELUGU", "THAI", "TIBETAN",
)  # fmt: skip


def tokens(text: str) -> list[str]:
    """Words in lower case."""
    return [word.lower() for word in TOKEN.findall(unicodedata.normalize("NFC", text))[:LONGEST]]


@cache
def _script_of(c: str) -> str:
    name = unicodedata.name(c, "")
    return next((known.title() if known != "CJK" else known for known in SCRIPTS if name.startswith(known)), "Other")


def script(text: str) -> str:
    """The alphabet that most of a text's letters belong to: Latin, Cyrillic, CJK, ...; None for a text without."""
    counts = Counter(_script_of(c) for c in text[:500] if c.isalpha())
    return counts.most_common(1)[0][0] if counts else "None"


def about(ids: Sequence[int], texts: Sequence[str], most: int = 200) -> dict[str, Any]:
    """The table of `Room.captions`."""
    held = [(id, text) for id, text in zip(ids, texts, strict=True) if text.strip()]
    same: dict[str, list[int]] = defaultdict(list)
    for id, text in held:
        same[text].append(id)
    split = {text: tokens(text) for text in same}
    words, phrases = Counter[str](), Counter[str]()
    for text, of in same.items():
        words.update({word: len(of) * n for word, n in Counter(split[text]).items() if word not in COMMON})
        phrases.update({phrase: len(of) for phrase in set(_phrases(split[text]))})
    scripts = Counter[str]()
    for text, of in same.items():
        scripts[script(text)] += len(of)
    repeated = sorted(((text, of) for text, of in same.items() if len(of) > 1), key=lambda row: -len(row[1]))
    return {
        "pictures": len(ids),
        "captioned": len(held),
        "empty": len(ids) - len(held),
        "distinct": len(same),
        "length": _lengths([len(text) for _, text in held], [len(split[text]) for _, text in held]),
        "words": [[word, n] for word, n in words.most_common(most)],
        "phrases": [[phrase, n] for phrase, n in phrases.most_common(most) if n > 1],
        "repeated": [[text, len(of), of[:24]] for text, of in repeated[:most]],
        "scripts": [[name, n] for name, n in scripts.most_common()],
    }


def _phrases(words: Sequence[str]) -> Iterable[str]:
    """Two and three words that neither begin nor end with a common one."""
    for n in (2, 3):
        for i in range(len(words) - n + 1):
            part = words[i : i + n]
            if part[0] not in COMMON and part[-1] not in COMMON:
                yield " ".join(part)


def _lengths(characters: Sequence[int], words: Sequence[int]) -> dict[str, Any]:
    if not characters:
        return {"characters": None, "words": None, "histogram": {"edges": [], "counts": []}}
    counts, edges = np.histogram(words, bins=min(40, max(words) + 1))
    return {
        "characters": [min(characters), float(np.median(characters)), max(characters)],
        "words": [min(words), float(np.median(words)), max(words)],
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def telling(clusters: Sequence[int], texts: Sequence[str], most: int = 6) -> dict[int, list[str]]:
    """The words that are more frequent in a cluster than elsewhere, by the log-likelihood ratio (Dunning 1993)."""
    inside: dict[int, Counter[str]] = defaultdict(Counter)
    sizes, whole = Counter(clusters), Counter[str]()
    for cluster, text in zip(clusters, texts, strict=True):
        found = {word for word in tokens(text) if word not in COMMON and not word.isdigit()}
        inside[cluster].update(found)
        whole.update(found)
    n = len(clusters)
    out = {}
    for cluster, counts in inside.items():
        scores = {
            word: _surprise(k, sizes[cluster], whole[word], n)
            for word, k in counts.items()
            if k / sizes[cluster] > whole[word] / n and (k > 1 or sizes[cluster] < 4)
        }
        out[cluster] = [word for word, _ in sorted(scores.items(), key=lambda one: (-one[1], one[0]))[:most]]
    return out


def _surprise(k: int, size: int, total: int, n: int) -> float:
    """Twice the log-likelihood ratio of `k` of `size` here, given `total` of `n` in all."""

    def bits(x: float, expected: float) -> float:
        return x * math.log(x / expected) if x > 0 else 0.0

    rest = total - k
    return 2 * (
        bits(k, size * total / n)
        + bits(size - k, size * (n - total) / n)
        + bits(rest, (n - size) * total / n)
        + bits(n - size - rest, (n - size) * (n - total) / n)
    )

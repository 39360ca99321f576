"""Where pictures come from: the registrable domain of a column of addresses."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

__all__ = ["address_column", "domain", "summary"]

COLUMNS = ("url", "image_url", "page_url", "source_url", "link", "href", "source")
# A part of the Public Suffix List (publicsuffix.org, MPL-2.0): countries that register below a second level, and hosts
# that give a name to each customer, whose pictures are the customer's.
SECOND = "ac co com edu gob gouv gov go gv ltd mil ne net nom or org plc sch"
COUNTRIES = (
    "ae ar at au bd bh bo br bw cl cn co cr cy do ec eg es fj gh gr gt hk hn id il in jp ke kh kr kw lb lk ma mo mt mx "
    "my mz na ng ni np nz om pa pe pg ph pk pl pr pt py qa ro ru sa sg sv th tn tr tt tw tz ua ug uk uy uz ve vn za zm "
    "zw"
)
HOSTS = (
    "appspot.com azurewebsites.net blogger.com cloudfront.net deviantart.com fandom.com firebaseapp.com github.io "
    "gitlab.io herokuapp.com hatenablog.com livejournal.com myportfolio.com myshopify.com netlify.app pages.dev "
    "shopifypreview.com smugmug.com squarespace.com substack.com tumblr.com typepad.com vercel.app web.app "
    "weebly.com wixsite.com wordpress.com s3.amazonaws.com"
)
SCHEMES = ("", "http:", "https:", "ftp:")
END = re.compile(r"[/?#\\]")  # of the part of an address that names the host
SECONDS, BELOW, GIVEN = set(SECOND.split()), set(COUNTRIES.split()), set(HOSTS.split())


def domain(address: str) -> str | None:
    """'https://www.bbc.co.uk/x' to 'bbc.co.uk', 'http://cats.blogspot.com' to itself; in lower case, internationalised
    names as they are read; a number stays whole. None for what is no address of a host."""
    scheme, found, rest = address.strip().partition("//")
    if not found:
        scheme, rest = "", address.strip().replace("@", " ")  # a letter box is no place of pictures
    return _of_host(END.split(rest, maxsplit=1)[0]) if scheme.lower() in SCHEMES else None


@lru_cache(1 << 16)
def _of_host(authority: str) -> str | None:
    """Of what stands between the slashes: user:word@host:port. Thousands of addresses share one."""
    try:
        host = (urlsplit(f"//{authority}").hostname or "").rstrip(".").lower()
    except ValueError:
        return None
    if not host or any(c.isspace() for c in host):
        return None
    with suppress(ValueError):
        return str(ipaddress.ip_address(host))
    names = [_readable(name) for name in host.split(".")]
    if len(names) < 2 or not all(names) or not all(c.isalnum() or c in "-_" for name in names for c in name):
        return None
    return ".".join(names[-(_suffix(names) + 1) :])


def _readable(name: str) -> str:
    """'xn--bcher-kva' to 'bücher'."""
    if name.startswith("xn--"):
        with suppress(UnicodeError):
            return name.encode("ascii").decode("idna")
    return name


def _suffix(names: Sequence[str]) -> int:
    """How many of the last names belong to nobody in particular."""
    country = 2 if len(names) > 2 and names[-1] in BELOW and names[-2] in SECONDS else 1
    if len(names) > country + 1 and names[-country - 1] == "blogspot":
        return country + 1
    given = next((n for n in (3, 2) if len(names) > n and ".".join(names[-n:]) in GIVEN), 1)
    return max(country, given)


def address_column(columns: Mapping[str, Sequence[Any]]) -> str | None:
    """The column whose values are mostly addresses: by its name, else by what is in it."""
    named = [name for wanted in COLUMNS for name in columns if name.lower() == wanted]
    for name in (*named, *columns):
        some = [value for value in columns[name][:2000] if value not in (None, "")][:200]
        good = [value for value in some if isinstance(value, str) and value.startswith(("http://", "https://"))]
        if some and len(good) > len(some) / 2:
            return name
    return None


def summary(column: str | None, found: Sequence[str | None], most: int = 1000) -> dict[str, Any]:
    """The table of `Room.sources`."""
    counts = Counter(name for name in found if name)
    with_one = sum(counts.values())
    return {
        "column": column,
        "domains": [[name, n, n / with_one] for name, n in counts.most_common(most)],
        "without": len(found) - with_one,
        "total": len(counts),
    }

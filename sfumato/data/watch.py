"""Are the files that examples were read from still what they were?"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sfumato.data.options import Skipped, escape

__all__ = ["Files", "stamp"]


def stamp(info: os.stat_result) -> str:
    """Differs when a file was written, replaced or given other attributes, even if its time was set back."""
    return f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"


@dataclass(frozen=True)
class Files:
    """Where examples lie, and how each file looked when it was listed: a file for every example, or files that hold
    many (`shared`)."""

    what: str  # for messages: 'the folder "photos"'
    root: str  # absolute
    names: tuple[str, ...]  # below `root`, as the system spells them
    stamps: tuple[str, ...]
    shared: bool = False

    @classmethod
    def of(cls, what: str, paths: Sequence[str | os.PathLike[str]]) -> Files:
        """Files that hold many examples each, all in one folder. Raises OSError."""
        root = os.path.dirname(os.path.abspath(paths[0]))
        names = tuple(os.path.basename(os.fspath(path)) for path in paths)
        return cls(what, root, names, tuple(stamp(os.stat(path)) for path in paths), shared=True)

    def take(self, keep: Sequence[int]) -> Files:
        """Those of some of the examples."""
        if self.shared:
            return self
        return replace(self, names=tuple(self.names[i] for i in keep), stamps=tuple(self.stamps[i] for i in keep))

    def differs(self, i: int) -> str | None:
        """What happened to file i since it was listed, if anything did."""
        try:
            return None if stamp(os.stat(os.path.join(self.root, self.names[i]))) == self.stamps[i] else "was changed"
        except OSError as error:
            return _lost(error)

    def changes(self, shown: Sequence[str]) -> tuple[Skipped, ...]:
        """What happened to which file, by the names that the examples are `shown` with; one entry if all are lost."""
        try:
            os.stat(self.root)
        except OSError as error:
            return (Skipped(self.what, _lost(error)),)
        shown = [escape(name) for name in self.names] if self.shared else shown
        found = [Skipped(shown[i], why) for i in range(len(self.names)) if (why := self.differs(i)) is not None]
        reasons = {why for _, why in found}
        if 1 < len(found) == len(self.names) and len(reasons) == 1 and "was changed" not in reasons:
            lost = f"has lost all {len(found):,} files" if "is gone" in reasons else reasons.pop()
            return (Skipped(self.what, lost),)
        return tuple(found)


def _lost(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "is gone"
    return f"cannot be read ({os.strerror(error.errno or 0).lower()})"

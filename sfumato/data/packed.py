"""Members of archives, unpacked no further than they declare."""

from __future__ import annotations

import io
import zipfile
from typing import IO, BinaryIO

from sfumato.data.decode import BadPicture

__all__ = ["open_member"]

KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
PIECE = 4096


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> BinaryIO:
    """A member to read from the start to the end. Raises zipfile's errors, and BadPicture for bzip2, of which a piece
    however small may become gigabytes."""
    if member.compress_type not in KINDS:
        raise BadPicture("is packed in a way that is not read here: use deflate")
    return io.BufferedReader(_Pieces(archive.open(member)))


class _Pieces(io.RawIOBase):
    """A few kilobytes at a time: for larger reads zipfile unpacks lzma without limit and deflate up to 2 GB, and only
    then looks at the declared size."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.at = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            piece = self.file.read(min(len(buffer), PIECE))
        except MemoryError as error:  # lzma believes the size of the dictionary that is declared
            raise ValueError("it needs more memory than there is") from error
        buffer[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self.at

    def close(self) -> None:
        self.file.close()
        super().close()

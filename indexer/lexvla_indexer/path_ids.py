"""Paths as ids, and back: any path of a file system, as text without control characters."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

__all__ = ["id_of_path", "path_of_id", "path_of_text", "text_of_path"]

_ESCAPE = re.compile(rb"%(?!00)([0-9A-F]{2})")  # no path has a NUL
# A percent sign alone stays: file names have it more often than an escape.
_ESCAPED = re.compile(rb"[\x01-\x1f\x7f]|%(?=(?!00)[0-9A-F]{2})")


def id_of_path(path: Path) -> str:
    r"""Return a path as an id, with slashes.

    Control characters and bytes that are not UTF-8 become ``%`` and two upper-case hexadecimal
    digits, as in addresses, and so does a ``%`` in front of two such digits.

    Example:
        >>> id_of_path(Path("100%/caf\udce9\n.jpg"))
        '100%/caf%E9%0A.jpg'
    """
    data = _ESCAPED.sub(_escape, path.as_posix().encode("utf-8", "surrogateescape"))
    text = data.decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02X}", text)


def path_of_id(name: str) -> Path:
    """Return the path that `id_of_path` made an id of."""
    data = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), name.encode())
    return Path(data.decode("utf-8", "surrogateescape"))


def text_of_path(path: Path) -> str:
    """Return a path as it is, or as a ``file:`` address if it is not text."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return path.as_uri()
    return text


def path_of_text(text: str) -> Path:
    """Return the path that `text_of_path` wrote."""
    if not text.startswith("file:"):
        return Path(text)
    return Path(os.fsdecode(unquote_to_bytes(text.removeprefix("file:").removeprefix("//"))))


def _escape(found: re.Match[bytes]) -> bytes:
    return b"%%%02X" % found[0][0]

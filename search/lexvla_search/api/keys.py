"""API keys: who may read and who may write, in a file that holds no key itself."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lexvla.errors import InputError, LexVLAError

__all__ = ["SCOPES", "Key", "Keys", "Scope", "make_key", "read_keys", "revoke_key"]

Scope = Literal["read", "write"]
SCOPES: tuple[Scope, ...] = ("read", "write")

_FORMAT_VERSION = 1
_PREFIX = "lexvla_"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Key:
    """A key as the file keeps it; scope ``write`` includes ``read``, and `created` is Unix time.

    A key is 256 random bits, so its hash needs neither salt nor a slow hash function.
    """

    name: str
    scope: Scope
    sha256: str
    created: int

    def may(self, scope: Scope) -> bool:
        """Return whether the key has this scope."""
        return self.scope in (scope, "write")


def read_keys(path: Path) -> list[Key]:
    """Read a file of keys; `LexVLAError` if it is missing, damaged or newer than this program."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format_version"]
        if version > _FORMAT_VERSION:
            raise LexVLAError(f"{path}: keys of format {version} are newer than this program")
        keys = [Key(**each) for each in data["keys"]]
    except FileNotFoundError as error:
        made = f"lexvla api-key --scope write --keys {path}"
        raise LexVLAError(f"{path}: no such file of keys; make one with: {made}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LexVLAError(f"{path}: not a readable file of keys ({error})") from error
    for key in keys:
        if key.scope not in SCOPES or not re.fullmatch(r"[0-9a-f]{64}", str(key.sha256)):
            raise LexVLAError(
                f"{path}: not a readable file of keys (the key {key.name!r} is invalid)"
            )
    return keys


def make_key(path: Path, scope: Scope, name: str | None = None) -> tuple[str, Key]:
    """Add a key to a file, created if missing. Return the secret and what the file keeps of it.

    `InputError` if the name is taken, or has characters other than letters, digits and ``._-``.
    """
    secret = _PREFIX + secrets.token_urlsafe(32)
    name = name or f"{scope}-{secrets.token_hex(4)}"
    if not _NAME.fullmatch(name):
        raise InputError(name, "a key's name is up to 64 letters, digits and any of . - _")
    key = Key(name, scope, _hash(secret), int(time.time()))
    with _locked(path):
        keys = read_keys(path) if path.exists() else []
        if any(each.name == name for each in keys):
            raise InputError(name, "there is a key of this name")
        _write(path, [*keys, key])
    return secret, key


def revoke_key(path: Path, name: str) -> None:
    """Remove a key from a file. Running servers reject it from the next request on."""
    with _locked(path):
        keys = read_keys(path)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise InputError(name, "there is no key of this name")
        _write(path, left)


class Keys:
    """The keys of a file, which is read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        self._reload()

    def find(self, secret: str) -> Key | None:
        """Return what is kept of a key, or ``None``."""
        self._reload()
        # By hash, so that the time taken reveals nothing about the key.
        return self._keys.get(_hash(secret))

    def _reload(self) -> None:
        try:
            stat = self._path.stat()
        except OSError as error:
            raise LexVLAError(f"{self._path}: not a readable file of keys ({error})") from error
        seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen != self._seen:
            self._keys = {key.sha256: key for key in read_keys(self._path)}
            self._seen = seen


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(f"{path.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, keys: list[Key]) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    data = {"format_version": _FORMAT_VERSION, "keys": [asdict(key) for key in keys]}
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(data, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)

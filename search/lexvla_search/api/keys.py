"""API keys: who may read and who may write, in a file that holds no key itself.

Beside the hashes of keys the file has the secret that signs addresses of pictures.
"""

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
from typing import Literal, NamedTuple

from lexvla.errors import InputError, LexVLAError

__all__ = ["SCOPES", "Key", "Keys", "Scope", "make_key", "read_keys", "revoke_key"]

Scope = Literal["read", "write"]
SCOPES: tuple[Scope, ...] = ("read", "write")

_FORMAT_VERSION = 2
_PREFIX = "lexvla_"
_HEX = re.compile(r"[0-9a-f]{64}")
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
    """Read a file of keys; `LexVLAError` if it is missing, damaged or of another version."""
    return _read(path).keys


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
        file = _read(path) if path.exists() else _File([], secrets.token_hex(32))
        if any(each.name == name for each in file.keys):
            raise InputError(name, "there is a key of this name")
        _write(path, file._replace(keys=[*file.keys, key]))
    return secret, key


def revoke_key(path: Path, name: str) -> None:
    """Remove a key from a file. Running servers reject it from the next request on.

    All signed addresses end too, as some were given out to the key.
    """
    with _locked(path):
        keys = read_keys(path)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise InputError(name, "there is no key of this name")
        _write(path, _File(left, secrets.token_hex(32)))


class Keys:
    """The keys of a file, which is read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        self._signing = b""
        self._reload()

    def find(self, secret: str) -> Key | None:
        """Return what is kept of a key, or ``None``."""
        self._reload()
        # By hash, so that the time taken reveals nothing about the key.
        return self._keys.get(_hash(secret))

    def signing(self) -> bytes:
        """Return the secret that signs addresses, the same for all servers with this file."""
        self._reload()
        return self._signing

    def _reload(self) -> None:
        try:
            stat = self._path.stat()
        except OSError as error:
            raise LexVLAError(f"{self._path}: not a readable file of keys ({error})") from error
        seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen != self._seen:
            file = _read(self._path)
            self._keys = {key.sha256: key for key in file.keys}
            self._signing = bytes.fromhex(file.signing)
            self._seen = seen


class _File(NamedTuple):
    keys: list[Key]
    signing: str  # 32 random bytes in hex


def _read(path: Path) -> _File:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format_version"]
        if version != _FORMAT_VERSION:
            age = (
                "newer than this program" if version > _FORMAT_VERSION else "too old; make new ones"
            )
            raise LexVLAError(f"{path}: keys of format {version} are {age}")
        file = _File([Key(**each) for each in data["keys"]], data["signing"])
    except FileNotFoundError as error:
        made = f"lexvla api-key --scope write --keys {path}"
        raise LexVLAError(f"{path}: no such file of keys; make one with: {made}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LexVLAError(f"{path}: not a readable file of keys ({error})") from error
    if not _HEX.fullmatch(str(file.signing)):
        raise LexVLAError(f"{path}: not a readable file of keys (the signing secret is invalid)")
    for key in file.keys:
        if key.scope not in SCOPES or not _HEX.fullmatch(str(key.sha256)):
            raise LexVLAError(
                f"{path}: not a readable file of keys (the key {key.name!r} is invalid)"
            )
    return file


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(f"{path.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, file: _File) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    data = {
        "format_version": _FORMAT_VERSION,
        "signing": file.signing,
        "keys": [asdict(key) for key in file.keys],
    }
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(data, out, indent=2)
        out.flush()
        os.fsync(out.fileno())
    new.replace(path)

"""A document's fingerprint: its source's key, and hashes of what was encoded and of what is stored.

The three are joined by colons. A document that no ingest made has another fingerprint, or none.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["content_of", "hash_of", "hash_of_content", "source_of"]


def source_of(fingerprint: str) -> str:
    """Return the key of the source in a document's fingerprint; empty if it has none."""
    return fingerprint.rpartition(":")[0].partition(":")[0]


def content_of(fingerprint: str) -> str:
    """Return the hash of what the vectors depend on; equal ones mean equal vectors.

    Empty for a document that no ingest made.
    """
    parts = fingerprint.split(":")
    return parts[1] if len(parts) == 3 else ""


def hash_of_content(model: str, text: str, image: bytes | None) -> str:
    """Hash what vectors depend on: a model, and the bytes of an image, or the text without one."""
    if image is None:
        return hash_of([model, "text", text])
    return hash_of([model, "image", hashlib.sha256(image).hexdigest()])


def hash_of(values: list[Any]) -> str:
    """Return a short hash of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]

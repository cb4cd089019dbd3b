"""The pictures of documents: where they are, and addresses that a browser may load them from."""

from __future__ import annotations

import hmac
import os
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from lexvla_indexer import Document, Index
from lexvla_indexer.path_ids import path_of_text
from lexvla_indexer.roots import Roots
from lexvla_search import schema
from lexvla_search.api.thumbnails import Thumbnails
from lexvla_search.searcher import Hit, document_to_dict

__all__ = ["Pictures"]

_IMAGE, _THUMBNAIL = 1024, 256  # pixels of the longer side
# Seconds. An address stays the same for a while, so that browsers need not load a picture again.
_SAME, _VALID = 600, 3600
_SOURCES_SECONDS = 2.0  # between looks at where the sources lie


class Pictures:
    """Find documents' pictures, and tell people of documents without paths of this machine.

    Args:
        index: Says where the sources of its documents lie.
        folders: Where the files lie that may be shown.
        thumbnails: Of uploaded pictures, if any are kept; a file comes first.
        signing: Returns the secret that signs addresses, as an ``<img>`` can send no key; ``None``
            leaves them unsigned.
    """

    def __init__(
        self,
        index: Index,
        folders: Sequence[Path],
        thumbnails: Thumbnails | None,
        signing: Callable[[], bytes] | None,
    ) -> None:
        self._index, self._thumbnails = index, thumbnails
        self._sources, self._looked = Roots(index), time.monotonic()
        self._roots = [folder.resolve() for folder in folders]
        # As an index may have them, and as they are.
        self._named = [*self._roots, *(folder.absolute() for folder in folders)]
        self._signing = signing

    def find(self, document: Document) -> Path | bytes | None:
        """Return the file of a document's picture, its thumbnail, or ``None``."""
        path, thumbnails = self._file(document), self._thumbnails
        if path is not None or thumbnails is None:
            return path
        return thumbnails.get(document.id, document.fingerprint)

    def document(self, document: Document) -> schema.ShownDocument:
        """Return what people see of a document."""
        shown = document_to_dict(document)
        shown["uri"] = self._shown_uri(shown["uri"])
        return {**shown, **self._addresses(document)}

    def hit(self, hit: Hit) -> schema.ShownHit:
        """Return what people see of a hit."""
        shown = hit.to_dict()
        shown["document"]["uri"] = self._shown_uri(shown["document"]["uri"])
        return {**shown, **self._addresses(hit.document)}

    def may_load(self, name: str, expires: int, signature: str) -> bool:
        """Return whether an address of a document's picture was signed here and has not expired."""
        if self._signing is None or expires < time.time():
            return False
        return hmac.compare_digest(self._sign(name, expires).encode(), signature.encode())

    def _has(self, document: Document) -> bool:
        if self._file(document) is not None:
            return True
        thumbnails = self._thumbnails
        return thumbnails is not None and thumbnails.has(document.id, document.fingerprint)

    def _file(self, document: Document) -> Path | None:
        if not self._roots or not document.uri or "\0" in document.uri:
            return None
        sources = self._newest_sources()
        try:
            for root in self._roots:
                # Resolved first, so that neither ".." nor a link leads out of the folder.
                path = Path(os.path.realpath(root / path_of_text(sources.locate(document, root))))
                if path.is_relative_to(root) and path.is_file():
                    return path
        except (OSError, ValueError):  # a name that is too long, or has a NUL
            pass
        return None

    def _addresses(self, document: Document) -> schema.PictureUrls:
        if not self._has(document):
            return {"image_url": None, "thumbnail_url": None}
        place = f"/v1/documents/{quote(document.id, safe='')}/image"
        signed = ""
        if self._signing is not None:
            expires = (int(time.time()) // _SAME + 1) * _SAME + _VALID
            signed = f"&expires={expires}&signature={self._sign(document.id, expires)}"
        image, thumbnail = (f"{place}?size={side}{signed}" for side in (_IMAGE, _THUMBNAIL))
        return {"image_url": image, "thumbnail_url": thumbnail}

    def _newest_sources(self) -> Roots:
        now = time.monotonic()
        if now > self._looked + _SOURCES_SECONDS:
            self._sources, self._looked = Roots(self._index), now
        return self._sources

    def _sign(self, name: str, expires: int) -> str:
        secret = b"" if self._signing is None else self._signing()
        made = hmac.digest(secret, f"{expires}\n{name}".encode(), "sha256")
        return urlsafe_b64encode(made).decode().rstrip("=")

    def _shown_uri(self, uri: str) -> str:
        """Return a path relative to its folder, or, of a file elsewhere, its name."""
        path = unquote(urlsplit(uri).path) if uri.startswith("file:") else uri
        if not path.startswith("/"):
            return uri
        for root in self._named:
            if Path(path).is_relative_to(root):
                return os.path.relpath(path, root)
        return Path(path).name

"""Which documents are counted or listed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["EVERYTHING", "Scope"]


@dataclass(frozen=True)
class Scope:
    """Choose documents: those that meet all of these conditions.

    Attributes:
        filter: What a filter chooses; ``None`` for all.
        only: These ids, looked up in the commit last searched; ``None`` for all. Unknown ones
            choose nothing.
        but: Not these ids.
    """

    filter: str | None = None
    only: Collection[str] | None = None
    but: Collection[str] = ()

    @property
    def is_everything(self) -> bool:
        """Whether it chooses all documents."""
        return self.filter is None and self.only is None and not self.but


EVERYTHING = Scope()

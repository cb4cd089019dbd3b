"""What made a figure, so that a table in a paper can be traced."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from lexvla.encoder import Encoder
from lexvla.version import program_version
from lexvla_indexer.base import Index
from lexvla_search.evaluation.significance import SEED

__all__ = ["provenance", "run_tag"]

_ENGINE_VERSIONS = ("elasticsearch_version", "opensearch_version", "lucene_version")


def provenance(model: Encoder, index: Index) -> dict[str, Any]:
    """Return program, model, engine and index with their versions, the date, and the seed."""
    facts = index.info()
    versions = (facts[name] for name in _ENGINE_VERSIONS if name in facts)
    return {
        "program_version": program_version(),
        "model": model.name,
        "vocabulary_sha256": model.vocabulary.sha256,
        "engine": facts["engine"],
        "engine_version": next(versions, program_version()),
        "format_version": facts.get("format_version"),
        "documents": facts["documents"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": SEED,
    }


def run_tag(model: Encoder, system: str) -> str:
    """Return the last field of a run's lines: program, version, model and system."""
    return "-".join(
        "_".join(part.split()) for part in ("lexvla", program_version(), model.name, system)
    )

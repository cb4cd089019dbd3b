"""What tests of the Lucene engine need: Java, and scores to hold it against."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import EngineUnavailableError
from lexvla_indexer.jdk import find_jdk
from lexvla_indexer.lucene.scoring import query_weights


def missing() -> str:
    """Say what the Lucene engine lacks here, and how to get it; empty if nothing."""
    if not (find_spec("jnius") and find_spec("pyserini")):
        return "needs Pyserini: pip install 'lexvla[pyserini]'"
    try:
        find_jdk()
    except EngineUnavailableError as error:
        return f"{error}; or run scripts/get_engines.sh"
    return ""


def by_integers(
    leg: str, ids: Sequence[str], stored: Encoding, query: Encoding, k: int, state: Any
) -> list[tuple[str, float]]:
    """Search as the engine says it does, by scipy: integers, then score, then id."""
    rows, asked = getattr(stored, leg), getattr(query, leg)
    quantizer = state.legs[leg].quantizer
    weights, scale = query_weights(asked, state.legs[leg].longest)
    whole = sparse.csr_array((weights, asked.indices, asked.indptr), shape=asked.shape)
    sums = (quantizer.quantize(rows).astype(np.int64) @ whole.T).toarray()[:, 0].tolist()
    found = [pair for pair in zip(ids, sums, strict=True) if pair[1] > 0]
    best = sorted(found, key=lambda pair: (-pair[1], pair[0]))[:k]
    return [(name, total * (quantizer.step / scale)) for name, total in best]

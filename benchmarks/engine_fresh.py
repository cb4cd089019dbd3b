"""Open and search an index in a new process; print times and memory as JSON.

    python benchmarks/engine_fresh.py DIRECTORY QUERIES.npz

`engines.py` runs it with the files in the page cache.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from scipy import sparse

from lexvla.encoding import Encoding
from lexvla_indexer import open_index

K = 10


def memory(kind: str) -> int:
    """Return bytes of this process: ``VmRSS``, or its parts ``RssAnon`` and ``RssFile``."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024


def main(directory: str, queries: str) -> None:
    """Search each query once."""
    rows = sparse.csr_array(sparse.load_npz(queries))
    before = memory("VmRSS")
    started = time.perf_counter()
    with open_index(directory) as index:
        opened = time.perf_counter() - started
        taken = []
        for number in range(rows.shape[0]):
            query = Encoding(rows[number : number + 1])
            started = time.perf_counter()
            index.search(query, K)
            taken.append(time.perf_counter() - started)
        facts = {
            "open_s": opened,
            "first_ms": taken[0] * 1e3,
            "p50_ms": statistics.median(taken) * 1e3,
            "queries": len(taken),
            "resident_before": before,
            "resident": memory("VmRSS"),
            "resident_own": memory("RssAnon"),
            "resident_mapped": memory("RssFile"),
        }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Writers of a Lucene index that are killed at random moments: whole commits, and no lock."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from indexer_fakes import VOCABULARY
from lexvla_indexer.jdk import find_jdk
from lexvla_indexer.lucene import LuceneIndex
from source_tree import PYTHONPATH

pytestmark = [pytest.mark.java, pytest.mark.slow]

KILLS = 12
NAMES = [f"d{i:02}" for i in range(30)]

# Each commit replaces all documents by those of the next generation, and deletes one of them. The
# first changes of a process take Java half a second, so they are made to another index.
WRITER = """
import sys
from itertools import count
from lexvla_indexer import Document, open_index
from indexer_fakes import encode
from test_lucene_kills import NAMES

def commit(index, generation):
    gone = NAMES[generation % len(NAMES)]
    made = [Document(name, metadata={"generation": generation}) for name in NAMES]
    index.add(made, encode([{0: float(generation), 3: 0.5}] * len(made)))
    index.delete([gone])
    index.commit()

with open_index(sys.argv[1] + ".other", create=True) as other:
    for generation in (1, 2):
        commit(other, generation)
        other.compact()
print("ready", flush=True)
index = open_index(sys.argv[1], create=True)
for generation in count(int(sys.argv[2]) + 1):
    commit(index, generation)
    print(generation, flush=True)
    if generation % 3 == 0:
        index.compact()
"""


def test_a_killed_writer_leaves_whole_commits_and_no_lock(tmp_path):
    path, chance = tmp_path / "i", random.Random(5)
    LuceneIndex(path, create=True, vocabulary=VOCABULARY).close()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([PYTHONPATH, str(Path(__file__).parent)]),
        "JAVA_HOME": str(find_jdk().home),
    }
    known = 0
    for kill in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, f"lucene:{path}", str(known)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # Commits are waited for by number: how long they take depends on what else runs.
        said = [process.stdout.readline().strip() for _ in range(kill % 4)]
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read().split("\n")[:-1]  # without a line that was cut short
        process.wait()
        confirmed = max([known, *map(int, said)])
        with LuceneIndex(path) as index:
            assert index.verify() == []
            assert index.count() in (0, len(NAMES) - 1)
            known = check_one_generation(index, confirmed)
        LuceneIndex(path, create=True).close()  # the killed writer's lock is gone
    assert known >= sum(kill % 4 for kill in range(KILLS))


def check_one_generation(index: LuceneIndex, confirmed: int) -> int:
    """Return the generation of the documents: the confirmed one, or the next, which was cut."""
    if not index.count():
        assert confirmed == 0
        return 0
    names = sorted(index.fingerprints(NAMES))
    stored = index.fetch(names)
    (generation,) = {d.metadata["generation"] for d in stored.documents}
    assert generation in (confirmed, confirmed + 1)
    assert names == [n for n in NAMES if n != NAMES[generation % len(NAMES)]]
    first = stored.encoding.lexical[:, [0]].toarray()[:, 0]
    assert (first == np.float32(generation)).all()
    return int(generation)

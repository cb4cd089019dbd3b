"""The commands of docs/pyserini.md, run as they stand there over 30 drawings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lexvla.data.demo_corpus import load_demo_corpus
from lexvla_indexer.jdk import find_jdk
from source_tree import PYTHONPATH

pytestmark = [pytest.mark.java, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "pyserini.md"
ITEMS = 30
NAMED = "/usr/lib/jvm/temurin-25-jdk-amd64"  # the page's JAVA_HOME


def block(containing: str) -> str:
    """Return the one block of commands that holds a text."""
    blocks = re.findall(
        r"^```console\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    (found,) = (each for each in blocks if containing in each)
    return found


def run(commands: str, folder: Path, **environment: str) -> str:
    """Run commands in a shell that stops at the first failure. Return what they print."""
    functions = (
        f'lexvla() {{ "{sys.executable}" -m lexvla_search "$@"; }}\n'
        f'python() {{ "{sys.executable}" "$@"; }}\n'
    )
    plain = {n: v for n, v in os.environ.items() if n not in ("OPENAI_API_KEY", "JAVA_HOME")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", functions + commands],
        cwd=folder,
        env={**plain, "PYTHONPATH": PYTHONPATH, **environment},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def hits(path: Path) -> list[tuple[str, str, int]]:
    """Return query, document and rank of a run's lines, by query as text."""
    lines = (line.split() for line in path.read_text().splitlines())
    found = [(query, document, int(rank)) for query, _, document, rank, _, _ in lines]
    return sorted(found, key=lambda hit: (hit[0], hit[2]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as the page has it, after its first commands."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "photos").mkdir()
    corpus = load_demo_corpus("emoji")
    items = corpus[:: len(corpus) // ITEMS][:ITEMS]
    for item in items:
        (folder / "photos" / f"{item.id}.png").write_bytes(item.data)
    (folder / "photos" / "broken.png").write_bytes(b"no image")
    queries = [f"{n}\t{item.label}\n" for n, item in enumerate(items)]
    (folder / "queries.tsv").write_text("".join(queries), encoding="utf-8")
    qrels = [f"{n} 0 {item.id}.png 1\n" for n, item in enumerate(items)]
    (folder / "qrels.txt").write_text("".join(qrels))
    (folder / "printed").write_text(run(block("lexvla encode"), folder))
    return folder


def test_the_commands_give_runs_of_the_same_worth(folder: Path) -> None:
    printed = (folder / "printed").read_text()
    values = dict(re.findall(r"^(ndcg_cut_10|recall_10)\s+all\s+([\d.]+)$", printed, re.MULTILINE))
    assert "30 added, 1 rejected" in printed
    assert "Exception" not in printed  # of Anserini, which reads all files of the folder
    assert float(values["ndcg_cut_10"]) > 0.8  # by chance 0.15
    # `lexvla evaluate` prints nDCG@10 and R@10 of its own run over the same index.
    own = re.search(r"^default +([\d.]+) +([\d.]+)$", printed, re.MULTILINE)
    assert own is not None
    assert list(own.groups()) == [values["ndcg_cut_10"], values["recall_10"]]
    ours, theirs = hits(folder / "ours.trec"), hits(folder / "run.trec")
    assert {hit[:2] for hit in ours} == {hit[:2] for hit in theirs}
    assert len(ours) > ITEMS


def test_our_measures_are_those_of_trec_eval_for_pyserinis_runs(folder: Path) -> None:
    pytest.importorskip("ir_measures", reason="needs pip install 'lexvla[evaluation]'")
    from lexvla_search.evaluation.measures import measure
    from lexvla_search.evaluation.trec import read_qrels, read_run

    qrels = read_qrels(folder / "qrels.txt")
    given = "-q -c -m ndcg_cut.10 qrels.txt run.anserini.trec"
    printed = run(f"python -m lexvla_search.pyserini eval.trec_eval {given}", folder)
    lines = [line.split() for line in printed.splitlines()]
    theirs = {query: value for _, query, value in lines if query != "all"}
    assert len(theirs) == ITEMS
    ours = measure(read_run(folder / "run.anserini.trec"), qrels, ["nDCG@10"])
    assert {q: f"{value:.4f}" for q, value in ours.per_query["nDCG@10"].items()} == theirs


def test_pyserinis_commands_themselves(folder: Path) -> None:
    jdk = find_jdk()
    listed = [str(jdk.home / "bin" / "java"), "--list-modules"]
    modules = subprocess.run(listed, capture_output=True, text=True, check=True)
    if "jdk.incubator.vector" not in modules.stdout:
        pytest.skip(f"needs a full JDK; the one at {jdk.home} has no jdk.incubator.vector")
    commands = block("export JAVA_HOME")
    assert NAMED in commands
    values = run(commands.replace(NAMED, str(jdk.home)), folder)
    assert re.search(r"^ndcg_cut_10\s+all\s+0\.[89]", values, re.MULTILINE)
    assert (folder / "run.plain.trec").read_text() == (folder / "run.anserini.trec").read_text()


def test_an_index_of_anserini_tells_its_scale(folder: Path) -> None:
    printed = run(block("cp photos.jsonl.vocabulary"), folder)
    pairs = (line.split(maxsplit=1) for line in printed.splitlines())
    found = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    assert found["documents"] == str(ITEMS)
    assert found["quantization.lexical.scale"] == "100.0"
    assert found["quantization.lexical.bits"] == "8"
    assert int(found["vocabulary_size"].replace(",", "")) > 1000
    assert float(found["default"]) > 0.8  # nDCG@10; by chance 0.15

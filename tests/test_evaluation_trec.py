"""Queries, judgements and runs: what is read, what is refused and where, what is written."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lexvla.errors import GatheredInputError, InputError
from lexvla_search import Query
from lexvla_search.evaluation.trec import (
    falling,
    read_qrels,
    read_qrels_lines,
    read_queries,
    read_queries_lines,
    read_run,
    write_run,
)


def written(path: Path, *lines: str | bytes, end: bytes = b"\n") -> Path:
    path.write_bytes(b"".join((x if isinstance(x, bytes) else x.encode()) + end for x in lines))
    return path


def complaints(caught: pytest.ExceptionInfo[GatheredInputError]) -> list[str]:
    """Return the place and start of each error, with the folder left out."""
    return [f"{Path(error.item).name} {error.rule}" for error in caught.value.errors]


def test_queries_of_tabs_windows_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = written(
        tmp_path / "q.tsv", b"\xef\xbb\xbfq1\tred heart", "", " q 2 \tblue\tsky ", end=b"\r\n"
    )
    found = read_queries_lines(file)
    assert found.values == {"q1": Query(text="red heart"), "q 2": Query(text="blue sky")}
    assert found.where == {"q1": f"{file}:1", "q 2": f"{file}:3"}


def test_queries_of_json_have_images_beside_the_file(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "text": "dog", "filter": "year >= 2020"},
        {"id": "b", "image": "pictures/b.png"},
    ]
    file = written(tmp_path / "q.jsonl", *map(json.dumps, lines))
    assert read_queries(file) == {
        "a": Query(text="dog", filter="year >= 2020"),
        "b": Query(image=tmp_path / "pictures/b.png"),
    }


def test_a_folder_of_images_is_a_query_each(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    for name in ("b.png", "cats/a.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    written(tmp_path / "notes.txt", "no image")
    assert read_queries(tmp_path) == {
        "b.png": Query(image=tmp_path / "b.png"),
        "cats/a.png": Query(image=tmp_path / "cats" / "a.png"),
    }


def test_all_bad_queries_are_told_at_once(tmp_path: Path) -> None:
    lines = ["q1\tred", "q2 blue", "q1\tgreen", "q3\t", "\tblack", b"q4\t\xff"]
    with pytest.raises(GatheredInputError) as caught:
        read_queries(written(tmp_path / "q.tsv", *lines))
    starts = [complaint[:24] for complaint in complaints(caught)]
    assert starts == [
        "q.tsv:2 'q2 blue': must ",
        "q.tsv:3 the query 'q1' w",
        "q.tsv:4 'q3': a query mu",
        "q.tsv:5 '': an id must n",
        "q.tsv:6 is not UTF-8 tex",
    ]
    assert str(caught.value).count("\n") == 4


def test_bad_json_queries_are_told_at_once(tmp_path: Path) -> None:
    lines = [
        "{",
        "[]",
        '{"text": "x"}',
        '{"id": "a", "text": "x", "colour": 1}',
        '{"id": "b", "text": "x", "filter": "year >="}',
        '{"id": "c", "image": 5}',
        '{"id": 7, "text": "x"}',
    ]
    with pytest.raises(GatheredInputError) as caught:
        read_queries(written(tmp_path / "q.jsonl", *lines))
    found = complaints(caught)
    assert [complaint.split()[0] for complaint in found] == [f"q.jsonl:{n}" for n in range(1, 8)]
    assert "unknown fields: colour" in found[3]


def test_qrels_of_spaces_and_tabs(tmp_path: Path) -> None:
    lines = ["q1 0 d1 1", "q1\t0 d2\t0", "q 2\t0\tmy photo.jpg\t2", "  q3  Q0  d1  -1  "]
    file = written(tmp_path / "r.txt", *lines, end=b"\r\n")
    assert read_qrels(file) == {
        "q1": {"d1": 1, "d2": 0},
        "q 2": {"my photo.jpg": 2},
        "q3": {"d1": -1},
    }
    assert read_qrels_lines(file).where["q 2", "my photo.jpg"] == f"{file}:3"
    # Cut at all white space, this would be a judgement of "d".
    with pytest.raises(GatheredInputError, match="tabs must separate the fields"):
        read_qrels(written(tmp_path / "r.txt", "q1\t0\td 1\t"))


def test_all_bad_qrels_are_told_at_once(tmp_path: Path) -> None:
    lines = ["q1 0 d1 1", "q1 0 my photo.jpg 1", "q1 0 d1 0", "q1 0 d2 1.5", "q1 0 d3"]
    file = written(tmp_path / "r.txt", *lines)
    with pytest.raises(GatheredInputError) as caught:
        read_qrels(file)
    assert complaints(caught) == [
        "r.txt:2 'q1 0 my photo.jpg 1': must have 4 fields (query, iteration, document, relevance),"
        " not 5; where ids hold spaces, tabs must separate the fields",
        f"r.txt:3 'd1' was there before for query 'q1', at {file}:1",
        "r.txt:4 '1.5': the relevance must be a whole number",
        "r.txt:5 'q1 0 d3': must have 4 fields (query, iteration, document, relevance), not 3;"
        " where ids hold spaces, tabs must separate the fields",
    ]


def test_all_bad_run_lines_are_told_at_once(tmp_path: Path) -> None:
    lines = ["q Q0 a 1 2.5 t", "q Q0 b 2 nan t", "q Q0 a 3 1 t", "q Q0 c 4 x t", "q Q0 d 5 inf t"]
    with pytest.raises(GatheredInputError) as caught:
        read_run(written(tmp_path / "run.trec", *lines))
    assert [complaint[:28] for complaint in complaints(caught)] == [
        "run.trec:2 'nan': the score ",
        "run.trec:3 'a' was there bef",
        "run.trec:4 'x': the score mu",
        "run.trec:5 'inf': the score ",
    ]


@pytest.mark.parametrize("read", [read_queries, read_qrels, read_run])
def test_missing_and_empty_files_are_named(read, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.txt': cannot be read"):
        read(tmp_path / "nothing.txt")
    with pytest.raises(InputError, match=r"empty\.txt': has no"):
        read(written(tmp_path / "empty.txt", "", " "))


def test_a_run_is_written_by_score_and_equal_ones_by_id(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"q1": {"b": 1.0, "a": 1.0, "c": 3.5}, "q2": {}}, "lexvla")
    assert (tmp_path / "run").read_text() == (
        "q1 Q0 c 1 3.5 lexvla\nq1 Q0 a 2 1 lexvla\nq1 Q0 b 3 0.99999994 lexvla\n"
    )


def test_a_run_that_trec_files_cannot_hold_is_refused_whole(tmp_path: Path) -> None:
    with pytest.raises(GatheredInputError) as caught:
        write_run(tmp_path / "run", {"q 1": {"a": float("nan"), "b c": 1.0, "d": 1e39}}, "my tag")
    assert [error.rule.split(" is ")[0] for error in caught.value.errors] == [
        "the query id 'q 1'",
        "the document id 'b c'",
        "the tag 'my tag'",
        "the score of 'a' for 'q 1'",
        "the score of 'd' for 'q 1'",
    ]
    with pytest.raises(GatheredInputError) as caught:
        write_run(tmp_path / "run", {"p": {"a b": 1.0, "c d": 1.0}, "q": {"a b": 1.0}}, "tag")
    rule = "the document id 'a b' (and 1 more) is empty or has white space, which a run cannot hold"
    assert [error.rule for error in caught.value.errors] == [rule]
    assert not (tmp_path / "run").exists()


SCORES = st.one_of(
    st.floats(-1e30, 1e30), st.sampled_from([0.0, 1.0, 1.0 + 1e-12, 1e-45, -1e-45, 3e38])
)


@given(st.dictionaries(st.text("abcxyz", min_size=1, max_size=4), SCORES, max_size=30))
def test_a_written_run_keeps_its_order_whatever_reads_it(
    tmp_path_factory: pytest.TempPathFactory, scores: dict[str, float]
) -> None:
    file = tmp_path_factory.mktemp("runs") / "run"
    write_run(file, {"q": scores, "p": {"a": 1.0}}, "t")
    again = read_run(file).get("q", {})
    order = sorted(scores, key=lambda name: (-scores[name], name))
    assert list(again) == order
    values = [np.float32(score) for score in again.values()]
    assert all(before > after for before, after in pairwise(values))
    assert list(falling((name, scores[name]) for name in order)) == order
    for name in order:
        assert again[name] == pytest.approx(scores[name], rel=1e-5, abs=1e-37)

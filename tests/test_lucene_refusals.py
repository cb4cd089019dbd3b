"""What the Lucene engine refuses, and how it fails: by name, and without harm to the index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from indexer_fakes import QUERY, VOCABULARY, documents, encode, fill, found, random_rows
from lexvla.encoding import Encoding
from lexvla.errors import (
    EngineUnavailableError,
    IndexCorruptError,
    IndexLockedError,
    IndexMissingError,
    IndexVersionError,
    InputError,
    UnsupportedError,
    VocabularyMismatchError,
)
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import Document, open_index
from lexvla_indexer.lucene import LuceneIndex, writer
from lexvla_indexer.lucene.jvm import java_class
from lexvla_indexer.lucene.layout import FORMAT_VERSION
from source_tree import PYTHONPATH

pytestmark = pytest.mark.java


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LuceneIndex]:
    with LuceneIndex(tmp_path / "i", create=True, vocabulary=VOCABULARY, model="m") as made:
        yield made


def matrix(rows: list[list[float]]) -> sparse.csr_array:
    return sparse.csr_array(np.array(rows, np.float32))


def test_legs_widths_and_vocabularies_that_do_not_fit(index, tmp_path):
    fill(index, "a")
    with pytest.raises(UnsupportedError, match="the index keeps lexical, codes, dense; the new"):
        index.add(documents("b"), Encoding(encode([{0: 1.0}]).lexical))
    with pytest.raises(
        VocabularyMismatchError, match="lexical has 12 columns in the index, 2 here"
    ):
        index.add(documents("b"), Encoding(matrix([[1.0, 1.0]])))
    with pytest.raises(VocabularyMismatchError, match="lexical has 12 columns"):
        index.search(Encoding(matrix([[1.0, 1.0]])))
    with pytest.raises(UnsupportedError, match="queries have no codes leg"):
        index.search(Encoding(QUERY.lexical), leg="codes")
    with pytest.raises(ValueError, match="no leg is called 'words'"):
        index.search(QUERY, leg="words")
    with pytest.raises(ValueError, match="at least 1"):
        index.search(QUERY, 0)
    with pytest.raises(InputError, match="twice"):
        index.add(documents("bb"), encode([{0: 1.0}] * 2))
    with pytest.raises(ValueError, match="2 documents with 1 vectors"):
        index.add(documents("bc"), encode([{0: 1.0}]))
    with pytest.raises(VocabularyMismatchError, match="was made with"):
        LuceneIndex(tmp_path / "i", vocabulary=Vocabulary("ab"))


def test_an_index_without_a_vocabulary_names_terms_by_column(tmp_path):
    with LuceneIndex(tmp_path / "i", create=True) as index:
        assert len(index.vocabulary) == 0
        index.add(documents("a"), Encoding(matrix([[0.0, 1.0]])))
        index.commit()
    with LuceneIndex(tmp_path / "i") as index:
        assert index.vocabulary.terms == ("0", "1")


def test_one_writer(index, tmp_path):
    with LuceneIndex(tmp_path / "i") as reader:
        for change in (lambda: reader.add(documents("a"), QUERY), lambda: reader.delete([])):
            with pytest.raises(IndexLockedError, match="another writer"):
                change()
        code = "import sys; from lexvla_indexer import open_index as o; o(sys.argv[1], create=True)"
        other = subprocess.run(
            [sys.executable, "-c", code, f"lucene:{tmp_path / 'i'}"],
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
            capture_output=True,
            text=True,
        )
        assert "IndexLockedError" in other.stderr
        index.close()
        assert reader.delete([]) == 0


def test_directories_that_are_no_index(tmp_path):
    with pytest.raises(IndexMissingError, match=r"no index at lucene:.*lexvla index SOURCE"):
        LuceneIndex(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").touch()
    with pytest.raises(IndexCorruptError, match=r"holds other files \(photo.jpg\)"):
        LuceneIndex(tmp_path / "other", create=True)
    with pytest.raises(IndexCorruptError, match="is not a directory"):
        LuceneIndex(tmp_path / "other" / "photo.jpg", create=True)
    with pytest.raises(UnsupportedError, match="needs the path"):
        open_index("lucene:")
    open_index(tmp_path / "embedded", create=True).close()
    with pytest.raises(IndexMissingError, match="no index at lucene:"):
        LuceneIndex(tmp_path / "embedded")


def test_a_file_that_is_named_like_a_commit(index, tmp_path):
    (tmp_path / "i" / "segments_2.bak").touch()
    for use in (lambda: LuceneIndex(tmp_path / "i"), index.count):
        with pytest.raises(IndexCorruptError, match=r"segments_2\.bak: is named like a commit"):
            use()
    (tmp_path / "i" / "segments_2.bak").unlink()
    assert index.count() == 0


def test_too_little_memory_is_told_with_the_option(index, tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        java_class("java.util.ArrayList")(2**31 - 1, signature="(I)V")

    monkeypatch.setattr(writer._LuceneDocument, "fill", fails)
    index.add(documents("a"), encode([{0: 1.0}]))
    with pytest.raises(EngineUnavailableError, match=r"too little memory; JAVA_TOOL_OPTIONS=-Xmx"):
        index.commit()


def test_an_index_that_is_deleted_and_made_anew_is_followed(index, tmp_path):
    fill(index, "a", "b")
    index.close()
    with LuceneIndex(tmp_path / "i") as reader:
        for names in ("c", "de"):  # as many commits as before, then more
            shutil.rmtree(tmp_path / "i")
            with pytest.raises(IndexMissingError, match="no index at"):
                reader.count()
            with LuceneIndex(tmp_path / "i", create=True, vocabulary=VOCABULARY) as other:
                for name in names:
                    fill(other, name)
            assert reader.search(QUERY)[0].ids == [*names]


def test_damage_is_named(index, tmp_path):
    fill(index, "a", "b")
    assert index.verify() == []
    index.close()
    (postings,) = (tmp_path / "i").glob("*.fdt")
    whole = postings.read_bytes()
    at = len(whole) // 2
    postings.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with LuceneIndex(tmp_path / "i") as reader:
        (damage,) = reader.verify()
        assert postings.name in damage
    postings.unlink()
    with pytest.raises(IndexCorruptError, match=r"missing|damaged"):
        LuceneIndex(tmp_path / "i")
    (segments,) = (tmp_path / "i").glob("segments_*")
    segments.write_bytes(segments.read_bytes()[:-9])
    with pytest.raises(IndexCorruptError, match=r"damaged|truncated"):
        LuceneIndex(tmp_path / "i")


def test_another_vocabulary_beside_the_index(index, tmp_path):
    fill(index, "a")
    index.close()
    Vocabulary("ab").save(tmp_path / "i" / "vocabulary.json")
    with pytest.raises(IndexCorruptError, match="not the vocabulary of this index"):
        LuceneIndex(tmp_path / "i")


@pytest.mark.parametrize(
    ("version", "age"), [(FORMAT_VERSION - 1, "older"), (FORMAT_VERSION + 1, "newer")]
)
def test_another_format(tmp_path, monkeypatch, version, age):
    monkeypatch.setattr("lexvla_indexer.lucene.layout.FORMAT_VERSION", version)
    LuceneIndex(tmp_path / "i", create=True).close()
    monkeypatch.undo()
    with pytest.raises(IndexVersionError, match=f"format {version} is {age}"):
        LuceneIndex(tmp_path / "i")


def test_a_commit_that_fails_can_be_tried_again(index, tmp_path, monkeypatch):
    fill(index, "a")
    index.delete(["a"])
    index.add(documents("bc"), encode([{0: 1.0}] * 2))
    with monkeypatch.context() as patch:
        patch.setattr("lexvla_indexer.lucene.writer.terms_of", _no_space)
        with pytest.raises(OSError, match="No space"):
            index.commit()
    assert [name for name, _ in found(index)] == ["a"]
    index.commit()
    assert [name for name, _ in found(index)] == ["b", "c"]


def _no_space(_: Document) -> str:
    raise OSError(28, "No space left on device")


def test_a_closed_index_is_closed(index):
    index.close()
    index.close()
    for use in (index.count, index.info, lambda: index.search(QUERY), lambda: index.fetch([])):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_readers_keep_what_a_compaction_removes(index, tmp_path):
    rng = np.random.default_rng(9)
    rows = encode(random_rows(rng, 60))
    ids = [f"d{i:02}" for i in range(60)]
    with LuceneIndex(tmp_path / "i", create=False) as reader:
        for start in range(0, 60, 20):
            index.add(documents(ids[start : start + 20]), rows[start : start + 20])
            index.commit()
        before = found(reader)
        index.compact()
        assert reader.fetch([name for name, _ in before]).documents
        assert found(reader) == before


def test_the_directory_may_move(index, tmp_path):
    fill(index, "a")
    index.close()
    shutil.move(tmp_path / "i", tmp_path / "j")
    with open_index(f"lucene:{tmp_path / 'j'}") as moved:
        assert [name for name, _ in found(moved)] == ["a"]

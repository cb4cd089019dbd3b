from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import lexvla_indexer
from indexer_fakes import QUERY, VOCABULARY, WORDS, documents, encode, fill, found
from lexvla.encoding import Encoding
from lexvla.errors import (
    FilterSyntaxError,
    IndexCorruptError,
    IndexLockedError,
    IndexMissingError,
    UnsupportedError,
    VocabularyMismatchError,
)
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import EmbeddedIndex, Index, open_index
from lexvla_indexer.embedded import manifest
from lexvla_indexer.embedded.reader import SegmentCache
from source_tree import PYTHONPATH


@pytest.fixture
def index(tmp_path: Path) -> Iterator[EmbeddedIndex]:
    with EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as made:
        yield made


# Readers and writers


def test_a_reader_moves_on_at_its_next_search(index):
    fill(index, "a")
    reader = open_index(index.directory)
    assert found(reader) == [("a", 1.0)]
    index.delete(["a"])
    fill(index, "b")
    index.compact()
    assert reader.fetch(["a"]).documents == documents(["a"])  # the commit of the last search
    assert found(reader) == [("b", 1.0)]
    with pytest.raises(KeyError):
        reader.fetch(["a"])
    fill(index, "c")
    assert reader.fetch(["c"]).documents == documents(["c"])  # looked for in the newest commit
    reader.close()


def test_a_reader_that_has_found_nothing_new_still_sees_one_commit(index):
    fill(index, "a")
    reader = open_index(index.directory)
    for _ in range(3):
        assert found(reader) == [("a", 1.0)]
    index.delete(["a"])
    fill(index, "b")
    assert reader.fetch(["a"]).documents == documents(["a"])
    assert reader._reader().manifest.find(["b"]) == {}
    assert found(reader) == found(index) == [("b", 1.0)]
    reader.close()


def test_a_writer_sees_its_own_commits(index):
    assert found(index) == found(index) == []
    for name in "abc":
        fill(index, name)
        assert found(index)[-1] == (name, 1.0)
        assert index.info()["commit"] == index._writer._manifest.refresh() > 0
    index.delete(["a"])
    index.compact()
    assert [name for name, _ in found(index)] == ["b", "c"]


def test_a_reader_that_is_overtaken_by_compaction_looks_again(index, monkeypatch):
    fill(index, "a")
    reader = EmbeddedIndex(index.directory)
    fill(index, "b")
    get = SegmentCache.get

    def compact_first(self, state):
        monkeypatch.setattr(SegmentCache, "get", get)
        index.compact()
        return get(self, state)

    monkeypatch.setattr(SegmentCache, "get", compact_first)
    assert found(reader) == [("a", 1.0), ("b", 1.0)]
    reader.close()


def test_there_is_one_writer(index):
    with pytest.raises(IndexLockedError, match="another writer"):
        open_index(index.directory, create=True)
    with open_index(index.directory) as reader:
        with pytest.raises(IndexLockedError):
            reader.delete(["a"])
        with pytest.raises(IndexLockedError):
            reader.add(documents(["a"]), encode([{0: 1.0}]))
        assert reader.count() == 0
        index.close()
        reader.add(documents(["a"]), encode([{0: 1.0}]))  # a reader becomes the writer
        reader.commit()
        assert reader.count() == 1


def test_close_drops_what_is_staged_and_frees_the_lock(index):
    index.add(documents(["a"]), encode([{0: 1.0}]))
    index.close()
    index.close()
    with pytest.raises(ValueError, match="closed"):
        index.count()
    with open_index(index.directory, create=True) as again:
        assert again.count() == 0


def test_threads_may_search_while_commits_come(index):
    fill(index, "a")
    reader = open_index(index.directory)
    wrong: list[object] = []
    done = threading.Event()

    def work(source: Index) -> None:
        last: list[str] = []
        while not done.is_set():
            ids = [name for name, _ in found(source)]
            if ids != sorted(ids) or not set(last) <= set(ids):
                wrong.append(ids)
            last = ids

    threads = [threading.Thread(target=work, args=[i]) for i in (reader, reader, index, index)]
    for thread in threads:
        thread.start()
    for name in "bcdef":
        fill(index, name)
    index.compact()
    done.set()
    for thread in threads:
        thread.join()
    reader.close()
    assert wrong == []
    assert [name for name, _ in found(index)] == list("abcdef")


def test_a_search_in_another_thread_sees_nothing_of_an_unfinished_commit(index, monkeypatch):
    fill(index, "a")
    seen: list[list] = []
    to_json = manifest._to_json

    def search_meanwhile(value: object) -> str:
        if not seen:
            thread = threading.Thread(target=lambda: seen.append(found(index)))
            thread.start()
            thread.join()
        return to_json(value)

    monkeypatch.setattr(manifest, "_to_json", search_meanwhile)
    fill(index, "b")
    assert seen == [[("a", 1.0)]]
    assert found(index) == [("a", 1.0), ("b", 1.0)]


def test_hits_and_their_documents_agree_though_another_thread_moves_on(index):
    fill(index, "a")
    with open_index(index.directory) as reader:
        assert found(reader) == [("a", 1.0)]
        index.delete(["a"])
        index.commit()
        thread = threading.Thread(target=lambda: seen.append(found(reader)))
        seen: list[list] = []
        thread.start()
        thread.join()
        assert seen == [[]]
        assert reader.fetch(["a"]).documents == documents(["a"])
        assert found(reader) == []


def test_a_directory_that_cannot_be_written_is_read(index, monkeypatch):
    fill(index, "a")
    index.close()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with open_index(index.directory) as reader:
        assert found(reader) == [("a", 1.0)]
        assert not list(index.directory.glob("manifest.sqlite-*"))


# What is refused


def test_searches_that_make_no_sense_are_refused(index):
    fill(index, "a")
    with pytest.raises(ValueError, match="k must be"):
        index.search(QUERY, 0)
    with pytest.raises(ValueError, match="no leg"):
        index.search(QUERY, leg="sparse")
    with pytest.raises(FilterSyntaxError, match="column 6"):
        index.search(QUERY, filter="year>")
    with pytest.raises(UnsupportedError, match="queries have no dense"):
        index.search(Encoding(QUERY.lexical), leg="dense")
    with pytest.raises(VocabularyMismatchError, match="12 columns"):
        index.search(Encoding(sparse.csr_array(np.ones((1, 5), np.float32))))


def test_a_leg_that_the_index_lacks_is_refused(index):
    assert found(index, leg="codes") == []  # nothing was added yet
    index.add(documents(["a"]), Encoding(QUERY.lexical))
    index.commit()
    for leg in ("codes", "dense"):
        with pytest.raises(UnsupportedError, match=f"no {leg} leg"):
            index.search(QUERY, leg=leg)
    with pytest.raises(UnsupportedError, match="keeps lexical; the new vectors have lexical, co"):
        index.add(documents(["b"]), QUERY)


def test_vectors_of_another_width_are_refused(index):
    with pytest.raises(VocabularyMismatchError, match="lexical has 12 columns in the index, 5"):
        index.add(documents(["a"]), Encoding(sparse.csr_array(np.ones((1, 5), np.float32))))
    fill(index, "a")
    wide = Encoding(QUERY.lexical, None, QUERY.lexical, QUERY.dense)
    with pytest.raises(VocabularyMismatchError, match="codes has 4 columns"):
        index.add(documents(["b"]), wide)


def test_another_vocabulary_is_refused(index):
    index.close()
    other = Vocabulary(f"other{i}" for i in range(WORDS))
    for create in (True, False):
        with pytest.raises(VocabularyMismatchError):
            open_index(index.directory, create=create, vocabulary=other)
    with open_index(index.directory, create=True, vocabulary=VOCABULARY) as again:
        assert again.vocabulary == VOCABULARY


def test_without_a_vocabulary_terms_are_column_numbers(tmp_path):
    with open_index(tmp_path / "i", create=True, model="m") as index:
        reader = open_index(tmp_path / "i")
        assert len(reader.vocabulary) == 0
        index.add(documents(["a"]), encode([{0: 1.0}]))
        index.commit()
        assert found(reader) == [("a", 1.0)]
        assert reader.vocabulary.terms == tuple(map(str, range(WORDS)))
        assert (index.model, reader.model) == ("m", "m")
        reader.close()
    with open_index(tmp_path / "i") as index:
        assert index.vocabulary.terms == tuple(map(str, range(WORDS)))


def test_info(index):
    fill(index, "a", "b")
    fill(index, "b", "c")
    info = index.info()
    files = [f for f in index.directory.rglob("*") if f.is_file()]
    assert info["bytes"] == sum(f.stat().st_size for f in files)
    quantization = info.pop("quantization")
    assert quantization.keys() == {"lexical", "codes"}
    assert quantization["lexical"] == {
        "bits": 8,
        "rows": 3,
        "mean_error": pytest.approx((128 / 255 - 0.5) / 2, abs=1e-6),
        "max_error": pytest.approx(128 / 255 - 0.5, abs=1e-6),
        "overlap@10": 1.0,
    }
    assert info.pop("dense_search") == {
        "listed_rows": 0,
        "lists": 0,
        "nprobe": 0,
        "recall@10": 1.0,
    }
    del info["bytes"], info["writer_version"]
    assert info == {
        "engine": "embedded",
        "documents": 3,
        "segments": 2,
        "deleted_rows": 1,
        "mean_active_words": 2.0,
        "documents_with_text": 3,
        "legs": {"lexical": 12, "codes": 4, "dense": 3},
        "searched_legs": ["lexical", "codes", "dense", "text"],
        "vocabulary_size": 12,
        "vocabulary_sha256": VOCABULARY.sha256,
        "model": None,
        "commit": 2,
        "format_version": 7,
    }


def test_addresses(tmp_path):
    for address in ("solr://localhost:8983/x", "s3://bucket/x"):
        with pytest.raises(UnsupportedError, match="no engine"):
            open_index(address)
    with pytest.raises(IndexMissingError) as caught:
        open_index("my photos.lex")
    assert str(caught.value) == (
        "no index at my photos.lex; make one with: lexvla index SOURCE --index 'my photos.lex'"
    )
    with open_index(str(tmp_path / "a" / "b:c"), create=True) as index:
        assert isinstance(index, Index)


def test_a_directory_of_other_things_is_no_place_for_an_index(tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(IndexCorruptError, match=r"photo\.png"):
        open_index(tmp_path, create=True)
    with pytest.raises(IndexCorruptError, match="not a directory"):
        open_index(tmp_path / "photo.png", create=True)
    assert [f.name for f in tmp_path.iterdir()] == ["photo.png"]


def test_import_is_cheap():
    code = "import lexvla_indexer, sys; print([m for m in ('numpy', 'torch') if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )
    assert out.stdout == "[]\n"
    assert all(getattr(lexvla_indexer, name) for name in lexvla_indexer.__all__)
    with pytest.raises(AttributeError):
        lexvla_indexer.nothing  # noqa: B018

"""Flip bits of an index, and use it all the same. Run as a program: a crash must kill no test.

    python flip_fakes.py index|postings FOLDER SEED COUNT numba|numpy

It prints what it does before it does it, so that the last line tells what a crash came from, and
in the end a line of JSON: how often each thing happened.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from scipy import sparse

from indexer_fakes import LEGS, QUERY, VOCABULARY, documents, encode, random_rows
from lexvla.errors import IndexCorruptError, LexVLAError
from lexvla_indexer import EmbeddedIndex, open_index
from lexvla_indexer.embedded.postings import Postings, read_only, write_postings
from postings_fakes import random_impacts, searching

IDS = [f"d{i:03}é" for i in range(240)]
WIDTH = 40


def make_index(path: Path, lists: bool) -> None:
    """Write an index of two segments, with a deleted row, and with inverted lists if asked."""
    rows = encode(random_rows(np.random.default_rng(2), len(IDS)))
    listed = mock.patch("lexvla_indexer.embedded.dense_lists.LISTED_ROWS", 1 if lists else 10**9)
    with listed, EmbeddedIndex(path, create=True, vocabulary=VOCABULARY) as index:
        for first in (0, 120):
            index.add(documents(IDS[first : first + 120]), rows[first : first + 120])
            index.commit()
        index.delete(IDS[-1:])
        index.commit()


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def look_at_places() -> None:
    """Demand that compiled loops look at the places that they read: NUMBA_BOUNDSCHECK is set."""
    import numba

    try:
        numba.njit(lambda array, place: array[place])(np.zeros(1), 1)
    except IndexError:
        return
    raise AssertionError("NUMBA_BOUNDSCHECK must be 1")


@contextmanager
def flipped(file: Path, bit: int) -> Iterator[None]:
    data = file.read_bytes()
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    try:
        yield
    finally:
        file.write_bytes(data)


def flips(files: list[Path], seed: int, count: int) -> Iterator[tuple[Path, int]]:
    """Yield so many random bits; every file has its turn."""
    rng = random.Random(seed)
    for number in range(count):
        file = files[number % len(files)]
        yield file, rng.randrange(8 * file.stat().st_size)


def search_all(index: EmbeddedIndex) -> None:
    index.search_text("text d007e", 5)
    index.search_text("text d007e", 5, "n = 5 and not id = d007é")
    for leg in LEGS:
        for exact in (None, True, False):
            index.search(QUERY, 5, leg, exact=exact)
            index.search(QUERY, 5, leg, "n = 5 and not id = d007é", exact=exact)


def use(path: Path, file: Path) -> str:
    """Do all that can be done with an index of which a file is damaged. Return how it went."""
    try:
        index = open_index(path)
    except IndexCorruptError as error:
        assert file.name in str(error), (file, error)
        return "refused at open"
    with index:
        (damage,) = index.verify()
        assert str(file) in damage, (file, damage)
        outcome = "answered"
        for work in (
            lambda: search_all(index),
            lambda: index.fetch(IDS[:-1]),
            index.info,
        ):
            try:
                work()
            except IndexCorruptError:
                outcome = "refused at use"
        before = set(path.rglob("*.npy"))
        try:
            index.compact()
        except IndexCorruptError as error:
            assert file.name in str(error)
        else:
            raise AssertionError(f"{file} was copied")
        assert set(path.rglob("*.npy")) == before
        assert index.count() == len(IDS) - 1
    return outcome


def flip_index(path: Path, seed: int, count: int) -> Counter[str]:
    os.fsync = lambda _: None  # saves time
    seen: Counter[str] = Counter()
    files = sorted(file for file in (path / "segments").rglob("*") if file.is_file())
    for file, bit in flips(files, seed, count):
        tell(file, bit)
        with flipped(file, bit):
            seen[use(path, file)] += 1
    with open_index(path) as index:  # all is as it was
        assert index.verify() == []
        search_all(index)
    return seen


def flip_manifest(path: Path, seed: int, count: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    for file, bit in flips([path / "manifest.sqlite", path / "vocabulary.json"], seed, count):
        tell(file, bit)
        with flipped(file, bit):
            for leftover in path.glob("manifest.sqlite-*"):
                leftover.unlink()
            outcome = "answered"
            try:
                with open_index(path) as index:
                    search_all(index)
                    index.info()
                    index.fetch(IDS[:-1])
            except LexVLAError:
                outcome = "refused"
            except KeyError as error:  # an id that has become another
                assert error.args[0] in IDS
                outcome = "not found"
        seen[outcome] += 1
    return seen


def make_postings(folder: Path) -> sparse.csr_array:
    """Write postings of two blocks, the second one short."""
    matrix = random_impacts(np.random.default_rng(3), 70_000, WIDTH, 3, 255)
    write_postings(folder, matrix)
    return matrix


def flip_postings(folder: Path, seed: int, count: int) -> Counter[str]:
    """Flip bits before postings are opened; then change the arrays after that."""
    seen: Counter[str] = Counter()
    terms, weights = np.arange(WIDTH), np.full(WIDTH, 70, np.int32)
    for file, bit in flips(sorted(folder.iterdir()), seed, count):
        tell(file, bit)
        with flipped(file, bit):
            try:
                postings = Postings.open(folder)
            except IndexCorruptError:
                seen["refused at open"] += 1
                continue
            try:
                postings.retrieve(terms, weights, 10, 0)
            except IndexCorruptError:  # numpy counts the bits of a frequent term
                seen["refused later"] += 1
            else:
                seen["answered"] += 1
    rng = np.random.default_rng(seed)
    whole = Postings.open(folder)
    arrays = {name: getattr(whole, name) for name in ("terms", "starts", "ids", "impacts")}
    arrays |= {name: getattr(whole.bitmaps, name) for name in ("bits", "begins", "peaks")}
    for name, kept in arrays.items():
        for _ in range(count // 20):
            array = np.array(kept).ravel()
            most = np.iinfo(array.dtype)
            places = rng.integers(0, len(array), 5)
            array[places] = rng.integers(most.min, most.max, 5, array.dtype, endpoint=True)
            tell(name, places.tolist(), array[places].tolist())
            damaged = {name: read_only(array.reshape(kept.shape))}
            if hasattr(whole, name):
                changed = replace(whole, **damaged)
            else:
                changed = replace(whole, bitmaps=whole.bitmaps._replace(**damaged))
            with suppress(IndexCorruptError):
                changed.retrieve(terms, weights, 10, 0)
            seen["changed later"] += 1
    return seen


WORKS = {"index": flip_index, "manifest": flip_manifest, "postings": flip_postings}

if __name__ == "__main__":
    what, folder, seed, count, way = sys.argv[1:]
    with searching(way), np.errstate(all="ignore"):
        if way == "numba":
            look_at_places()
        tell(json.dumps(WORKS[what](Path(folder), int(seed), int(count))))

"""What is staged: which of several documents with one id stays, and which vectors are its."""

from __future__ import annotations

import pytest

from indexer_fakes import encode
from lexvla.errors import InputError
from lexvla_indexer import Document
from lexvla_indexer.staging import Staging


def documents(*names: str, uri: str = "") -> list[Document]:
    return [Document(name, uri=uri) for name in names]


def weights(staging: Staging) -> dict[str, float]:
    """Return each document's weight of the first term, by ascending id."""
    made, encoding = staging.rows()
    column = encoding.lexical[:, [0]].toarray().ravel().tolist()
    return dict(zip([document.id for document in made], column, strict=True))


def test_rows_come_by_id_and_of_one_id_the_last() -> None:
    staging = Staging()
    staging.add(documents("c", "a", "d"), encode([{0: 1.0}, {0: 2.0}, {0: 3.0}]))
    staging.add(documents("b", "c", uri="new"), encode([{0: 4.0}, {0: 5.0}]))
    staging.add(documents("e"), encode([{0: 6.0}]))
    assert staging.delete(["d", "e", "z"], ["z"]) == 3
    assert list(weights(staging).items()) == [("a", 2.0), ("b", 4.0), ("c", 5.0)]
    assert [document.uri for document in staging.rows()[0]] == ["", "new", "new"]
    assert staging.removed == {"a", "b", "c", "z"}
    staging.add(documents("d"), encode([{0: 7.0}]))
    assert weights(staging) == {"a": 2.0, "b": 4.0, "c": 5.0, "d": 7.0}


def test_a_whole_batch_is_not_copied() -> None:
    staging, batch = Staging(), encode([{0: 1.0}, {0: 2.0}])
    staging.add(documents("a", "b"), batch)
    assert staging.rows()[1] is batch
    staging.add(documents("c"), encode([{0: 3.0}]))
    staging.delete(["c"], [])
    assert staging.rows()[1] is batch
    staging.delete(["a"], [])
    assert weights(staging) == {"b": 2.0}


def test_a_batch_with_one_id_twice_stages_nothing() -> None:
    staging = Staging()
    with pytest.raises(InputError, match="'b': occurs twice in one batch"):
        staging.add(documents("a", "b", "b", "c"), encode([{0: 1.0}] * 4))
    assert not staging
    staging.add(documents("b"), encode([{0: 2.0}]))
    assert weights(staging) == {"b": 2.0}

"""The leg ``text`` of the embedded engine, against the formula of BM25 over all documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer_fakes import QUERY, VOCABULARY, encode, random_rows, scores
from lexvla.errors import UnknownDocumentError
from lexvla_indexer import Document, EmbeddedIndex
from lexvla_indexer.bm25 import TextRows
from lexvla_indexer.text_words import MAX_WORD_LENGTH, text_words

WORDS = ("red", "toucan", "heart", "a", "the", "éa", "Z")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A toucan.", ["a", "toucan"]),
        ("Café, CAFE\u0301!", ["cafe", "cafe"]),
        ("don't foo_bar 3.5", ["don", "t", "foo", "bar", "3", "5"]),
        ("Stra\u00dfe \ufb01ne", ["strasse", "fine"]),
        ("\u9ce5\u306e\u7d75 \u30ab\u30bf", ["\u9ce5", "\u306e", "\u7d75", "\u30ab\u30bf"]),
        ("\u0915\u0941\u0924\u094d\u0924\u093e", ["\u0915\u0941\u0924\u094d\u0924\u093e"]),
        ("... \n -", []),
        ("x" * 300, ["x" * MAX_WORD_LENGTH]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert text_words(text) == words
    assert text_words(" ".join(words)) == words


def impact(often: int, length: int) -> float:
    """Return what the formula gives, as the index keeps it."""
    return float(np.float32(often / (often + 1.2 * (0.25 + 0.75 * length / 10))))


def test_impacts() -> None:
    rows = TextRows.of(["A toucan.", "", "red red toucan"])
    assert rows.words == ["a", "red", "toucan"]
    assert rows.impacts.toarray().tolist() == [
        [impact(1, 2), 0, impact(1, 2)],
        [0, 0, 0],
        [0, impact(2, 3), impact(1, 3)],
    ]
    none = TextRows.of(["", ""])
    assert (none.words, none.impacts.shape) == ([], (2, 0))
    some = TextRows.stack([rows, TextRows.of(["heart"])])[np.array([3, 0])]
    assert some.words == ["a", "heart", "toucan"]
    assert some.impacts.toarray().tolist() == [
        [0, impact(1, 1), 0],
        [impact(1, 2), 0, impact(1, 2)],
    ]


def shares(query: str, texts: Sequence[str]) -> dict[str, float]:
    """Return the weight of each word of a query that a text has."""
    held = [set(text_words(text)) for text in texts]
    told = sum(map(bool, held))
    idf = {}
    for word in sorted(set(text_words(query))):
        if count := sum(word in own for own in held):
            idf[word] = math.log1p((told - count + 0.5) / (count + 0.5))
    return {word: weight / sum(idf.values()) for word, weight in idf.items()}


def text_scores(query: str, texts: Sequence[str]) -> list[float]:
    """Return each text's score, of the words in ascending order."""
    weights = shares(query, texts)
    found = []
    for text in texts:
        words = text_words(text)
        found.append(
            sum(
                impact(words.count(word), len(words)) * weight
                for word, weight in weights.items()
                if word in words
            )
        )
    return found


def test_scores_and_parts_of_a_few_documents(tmp_path: Path) -> None:
    texts = ["A toucan.", "a red toucan", "", "red red heart"]
    with EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as index:
        rows = encode([{0: 1.0}] * 4)
        for first in (0, 2):
            made = [Document(f"d{i}", text=texts[i]) for i in (first, first + 1)]
            index.add(made, rows[first : first + 2])
            index.commit()
        # Of three documents with text, two have each word: half of the weight is each word's.
        found = index.search_text("Toucan, RED zebra")
        assert found.ids == ["d1", "d3", "d0"]
        assert found.scores.tolist() == pytest.approx(
            [impact(1, 3), impact(2, 3) / 2, impact(1, 2) / 2], rel=1e-15
        )
        assert index.text_parts("Toucan, RED zebra", ["d2", "d1"]) == [
            {},
            pytest.approx({"red": impact(1, 3) / 2, "toucan": impact(1, 3) / 2}, rel=1e-15),
        ]
        assert index.search_text("toucan", 1).ids == ["d0"]
        assert index.search_text("toucan", filter="id = d1").ids == ["d1"]
        assert index.search_text("zebra").ids == index.search_text("?").ids == []
        assert index.search_text("heart").scores.tolist() == [impact(1, 3)]
        by_sum = index.search_legs(QUERY, {"text": 0.5}, 9, 9, text="heart")
        assert (by_sum.ids, by_sum.scores["text"].tolist()) == (["d3"], [impact(1, 3)])
        assert index.info()["documents_with_text"] == 3
        with pytest.raises(UnknownDocumentError):
            index.text_parts("red", ["d9"])
        with pytest.raises(ValueError, match="k must be at least 1"):
            index.search_text("red", 0)


def test_the_leg_is_there_while_a_document_has_text(tmp_path: Path) -> None:
    with EmbeddedIndex(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as index:
        assert index.legs() == ("lexical", "codes", "dense")
        assert index.info()["searched_legs"] == []
        index.add([Document("a"), Document("b", text="?!")], encode([{0: 1.0}] * 2))
        index.commit()
        assert index.legs() == ("lexical", "codes", "dense")
        index.add([Document("c", text="A toucan.")], encode([{0: 1.0}]))
        index.commit()
        assert index.legs() == ("lexical", "codes", "dense", "text")
        assert index.info()["searched_legs"] == ["lexical", "codes", "dense", "text"]
        index.delete(["c"])
        index.commit()
        assert index.legs() == ("lexical", "codes", "dense")
        assert index.search_text("toucan").ids == []


texts = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
# Copies among them, which score alike.
stores = st.lists(st.tuples(texts, st.integers(1, 3), st.booleans()), min_size=1, max_size=10).map(
    lambda pairs: [(text, gone) for text, count, gone in pairs for _ in range(count)]
)


@settings(max_examples=60)
@given(
    stores,
    texts,
    st.integers(1, 12),
    st.sampled_from([None, "even = 1"]),
    st.fixed_dictionaries(
        {"lexical": st.sampled_from([0.3, 0.7]), "text": st.sampled_from([0.2, 0.7])},
        optional={"dense": st.just(0.5)},
    ),
    st.data(),
)
def test_the_best_by_text_and_by_the_sum_of_legs(
    tmp_path_factory, stored, query, k, chosen, weights, data
) -> None:
    names = data.draw(st.permutations([f"d{i:02}" for i in range(len(stored))]))
    cut = data.draw(st.integers(0, len(names)))
    rows = encode(random_rows(np.random.default_rng(len(names)), len(names)))
    address = tmp_path_factory.mktemp("text") / "rows.lex"
    with EmbeddedIndex(address, create=True, vocabulary=VOCABULARY) as index:
        for part in (slice(0, cut), slice(cut, None)):
            made = [
                Document(name, text=text, metadata={"even": int(name[1:]) % 2})
                for name, (text, _) in zip(names[part], stored[part], strict=True)
            ]
            if made:
                index.add(made, rows[part])
                index.commit()
        index.delete([name for name, (_, gone) in zip(names, stored, strict=True) if gone])
        index.commit()
        answers = []
        for _ in range(2):
            by_text = index.search_text(query, k, chosen)
            by_sum = index.search_legs(QUERY, weights, k, 3, chosen, query)
            answers.append((by_text, by_sum))
            index.compact()
    live = [i for i, (_, gone) in enumerate(stored) if not gone]
    own = text_scores(query, [stored[i][0] for i in live])
    found = {"text": dict(zip(live, own, strict=True))}
    for leg in weights:
        if leg != "text":
            found[leg] = dict(enumerate(scores(leg, rows, QUERY).tolist()))
    total = {i: sum(w * max(found[leg][i], 0.0) for leg, w in weights.items()) for i in live}
    kept = [i for i in live if chosen is None or int(names[i][1:]) % 2]
    for by_text, by_sum in answers:
        best = sorted((-found["text"][i], names[i]) for i in kept if found["text"][i] > 0)[:k]
        assert len(by_text.ids) == len(best)
        assert by_text.scores.tolist() == pytest.approx([-score for score, _ in best], rel=1e-12)
        # The order of sums that differ in the last bit is the engine's own.
        pairs = [(-round(-score, 12), name) for score, name in best]
        assert [
            (round(-s, 12), n) for s, n in zip(by_text.scores, by_text.ids, strict=True)
        ] == pairs or len({score for score, _ in pairs}) < len(pairs)
        summed = dict(zip(by_sum.ids, range(len(by_sum.ids)), strict=True))
        for score, name in sorted((-total[i], names[i]) for i in kept if total[i] > 0)[:k]:
            place = summed[name]
            got = sum(w * max(by_sum.scores[leg][place], 0.0) for leg, w in weights.items())
            assert got == pytest.approx(-score, rel=1e-12)
    # Merged or not: to the last bit.
    (first, second) = ((t.ids, t.scores.tolist()) for t, _ in answers)
    assert first == second

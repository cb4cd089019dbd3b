"""Explanations sum to scores."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.images import open_image
from lexvla.vocabulary import Vocabulary
from lexvla_search.explanation import Explanation, LegPart, TermMatch
from search_fakes import GRID, FakeEncoder, spot

FOUND = Explanation((TermMatch("\u2581red", "red", 1.0, 0.4, 0.4, 6),), 0.4)
VOCABULARY = Vocabulary([f"\u2581w{i}" for i in range(40)])


def row(weights: dict[int, float], patches: bool = False) -> Encoding:
    dense = np.zeros((1, len(VOCABULARY)), dtype=np.float32)
    for column, weight in weights.items():
        dense[0, column] = weight
    lexical = sparse.csr_array(dense)
    return Encoding(lexical, np.arange(lexical.nnz, dtype=np.int16) if patches else None)


weights = st.dictionaries(
    st.integers(0, len(VOCABULARY) - 1),
    st.floats(2**-20, 4, width=32),
    max_size=len(VOCABULARY),
)


@given(weights, weights)
def test_parts_sum_to_the_dot_product(query: dict[int, float], document: dict[int, float]) -> None:
    q, d = row(query), row(document)
    score = float((q.lexical @ d.lexical.T).toarray()[0, 0])
    explanation = Explanation.of(q, d, VOCABULARY, score)
    assert explanation.total() == pytest.approx(score, rel=1e-5)
    assert {m.term for m in explanation.matches} == {
        VOCABULARY.terms[c] for c in query.keys() & document.keys()
    }
    products = [m.product for m in explanation.matches]
    assert products == sorted(products, reverse=True)


def test_matches_carry_weights_and_patches() -> None:
    explanation = Explanation.of(
        row({1: 0.5, 7: 0.5}), row({0: 1.0, 1: 0.25, 7: 0.5}, patches=True), VOCABULARY
    )
    first, second = explanation.matches
    assert (first.term, first.word, first.product, first.patch) == ("\u2581w7", "w7", 0.25, 2)
    assert (second.query_weight, second.document_weight, second.patch) == (0.5, 0.25, 1)
    assert explanation.score == 0.375


def test_plain_values() -> None:
    explanation = Explanation.of(row({1: 0.5}), row({1: 0.5}), VOCABULARY, score=0.25)
    assert json.loads(json.dumps(explanation.to_dict())) == {
        "score": 0.25,
        "fusion": "lexical",
        "parts": [],
        "text": [],
        "difference": 0.0,
        "matches": [
            {
                "term": "\u2581w1",
                "word": "w1",
                "query_weight": 0.5,
                "document_weight": 0.5,
                "product": 0.25,
                "patch": None,
                "part": 0.25,
            }
        ],
    }


def test_text() -> None:
    explanation = Explanation.of(
        row({1: 0.5, 22: 1.0}), row({1: 0.5, 22: 0.5}, patches=True), VOCABULARY
    )
    assert str(explanation).splitlines() == [
        "word   query    item  product  patch",
        "w22   1.0000  0.5000   0.5000      1",
        "w1    0.5000  0.5000   0.2500      0",
        "sum                    0.7500",
    ]
    assert explanation.table(top=1).splitlines()[1:] == [
        "w22      1.0000  0.5000   0.5000      1",
        "+1 more                   0.2500",
        "sum                       0.7500",
    ]
    assert explanation.summary(4) == "w22 0.500  w1 0.250"
    assert explanation.summary(top=1) == "w22 0.500  +1 more 0.250"


def test_nothing_in_common() -> None:
    explanation = Explanation.of(row({1: 0.5}), row({2: 0.5}), VOCABULARY)
    assert explanation.matches == ()
    assert explanation.total() == 0
    assert str(explanation) == "no word in common: score 0"


def fused(part: float = 0.3) -> Explanation:
    return Explanation.of(
        row({1: 1.0, 2: 0.5, 3: 1.0}),
        row({1: 0.5, 2: 0.5, 4: 1.0}, patches=True),
        VOCABULARY,
        part + 0.2,
        [LegPart("lexical", 0.76, 2, part), LegPart("dense", 0.9, None, 0.2)],
        "weighted (raw scores)",
    )


def test_words_share_the_part_of_their_leg() -> None:
    explanation = fused()
    assert [match.product for match in explanation.matches] == [0.5, 0.25]
    assert [match.part for match in explanation.matches] == pytest.approx([0.2, 0.1])
    assert explanation.total() == pytest.approx(0.5)
    # The engine's score of the leg is 0.76, the products are 0.75.
    assert explanation.difference == pytest.approx(0.01)
    data = json.loads(json.dumps(explanation.to_dict()))
    assert data["parts"] == [
        {"leg": "lexical", "score": 0.76, "rank": 2, "part": 0.3},
        {"leg": "dense", "score": 0.9, "rank": None, "part": 0.2},
    ]
    assert data["fusion"] == "weighted (raw scores)"
    assert "share" not in data["matches"][0]
    # A part below 0, as z-scores give, is shared out likewise.
    assert [match.part for match in fused(-0.3).matches] == pytest.approx([-0.2, -0.1])


def test_a_fused_table() -> None:
    assert str(fused()).splitlines() == [
        "word   query    item  product    part  patch",
        "w1    1.0000  0.5000   0.5000  0.2000      0",
        "w2    0.5000  0.5000   0.2500  0.1000      1",
        "sum                    0.7500  0.3000",
        "",
        "leg                     score  rank    part",
        "lexical                0.7600     2  0.3000",
        "dense                  0.9000     -  0.2000",
        "weighted (raw scores)                0.5000",
    ]
    assert fused().summary(4) == "w1 0.200  w2 0.100  [dense] 0.200"


def test_a_leg_that_did_not_find_it() -> None:
    parts = [LegPart("lexical", None, None, 0.0), LegPart("dense", 0.9, 1, 1 / 61)]
    explanation = Explanation.of(row({1: 1}), row({2: 1}), VOCABULARY, 1 / 61, parts, "rrf")
    assert explanation.total() == 1 / 61
    assert (explanation.matches, explanation.difference) == ((), 0)
    assert explanation.summary(4) == "[dense] 0.016"
    assert str(explanation).splitlines()[0] == "no word in common"
    # Words in common of a document that the lexical leg did not find deep enough add nothing.
    shared = Explanation.of(row({1: 1}), row({1: 1}), VOCABULARY, 1 / 61, parts, "rrf")
    assert [match.part for match in shared.matches] == [0]
    assert shared.summary(4) == "[dense] 0.016"


def test_words_that_do_not_count_are_not_shown_as_reasons() -> None:
    parts = [LegPart("dense", 0.9, 1, 0.9)]
    shared = row({1: 1, 2: 1}, patches=True)
    explanation = Explanation.of(shared, shared, VOCABULARY, 0.9, parts, "dense")
    assert [match.word for match in explanation.matches] == ["w1", "w2"]
    assert explanation.counted == ()
    assert explanation.summary(1) == "[dense] 0.900"
    assert str(explanation).splitlines() == [
        "words in common add nothing to this score",
        "",
        "leg     score  rank    part",
        "dense  0.9000     1  0.9000",
        "dense                0.9000",
    ]
    assert explanation.picture().size == (420, 2 * 14 + 26 * 2)
    assert re.findall(r'<tr class="(\w+)">', explanation.to_html()) == ["leg"]


@given(weights, weights, st.floats(-2, 2), st.floats(-2, 2))
def test_parts_sum_whatever_the_fusion(query, document, lexical: float, dense: float) -> None:
    parts = [LegPart("lexical", 1.0, 1, lexical), LegPart("dense", 0.5, 2, dense)]
    total = math.fsum([lexical, dense])
    explanation = Explanation.of(row(query), row(document), VOCABULARY, total, parts, "weighted")
    assert explanation.total() == total
    if explanation.matches:
        shares = math.fsum(match.part for match in explanation.matches)
        assert shares == pytest.approx(lexical, rel=1e-9, abs=1e-12)
    assert len(explanation.summary(4)) > 0
    assert explanation.table().endswith(f"{total:.4f}")


class TestPicture:
    def bar(self, picture: Image.Image, at: int) -> int:
        """Return how many pixels of the bar's colour its row has."""
        pixels = np.asarray(picture)[14 + 26 * at + 10]
        grounds = (pixels == (24, 20, 20)).all(axis=1)
        letters = (pixels[:, 0] > 230).sum()
        return int((~grounds[164:]).sum() - letters)

    def test_bars_are_as_long_as_the_parts(self) -> None:
        picture = fused().picture()
        assert picture.size == (420, 2 * 14 + 26 * 4)
        first, second, dense = (self.bar(picture, at) for at in range(3))
        assert first == pytest.approx(2 * second, abs=25)  # letters beside the bars count too
        assert first == pytest.approx(dense, abs=25)

    def test_the_image_glows_where_the_words_were_read(self) -> None:
        picture = FOUND.picture(spot("red", (1, 2)), FakeEncoder())
        assert picture.size == (384 + 420, 384)
        warmth = np.asarray(picture, dtype=float)[:, :384]
        glow = (warmth[..., 0] - warmth[..., 2]).reshape(4, 96, 4, 96).mean(axis=(1, 3))
        assert np.unravel_index(glow.argmax(), GRID) == (1, 2)

    def test_without_a_place_the_image_is_as_it_is(self) -> None:
        image = Image.new("RGBA", (64, 64), (10, 200, 30, 0))  # transparent: white
        nowhere = Explanation((TermMatch("\u2581red", "red", 1.0, 0.4, 0.4),), 0.4)
        for explanation, model in ((FOUND, None), (nowhere, FakeEncoder())):
            shown = np.asarray(explanation.picture(image, model))[:384, :384]
            assert (shown == 255).all()

    def test_many_words_are_one_bar(self) -> None:
        many = dict.fromkeys(range(30), 1.0)
        explanation = Explanation.of(row(many), row(many), VOCABULARY)
        assert explanation.picture().size == (420, 2 * 14 + 26 * 14)


class TestHtml:
    def test_every_part_and_the_score(self) -> None:
        said = fused().to_html()
        rows = re.findall(r'<tr class="(\w+)"><th scope="row">(.*?)</th><td>(.*?)</td>', said)
        words = [("word", match.word, f"{match.part:.4f}") for match in fused().matches]
        assert rows == [*words, ("leg", "[dense]", f"{fused().parts[1].part:.4f}")]
        assert f"<td>{fused().score:.4f}</td>" in said
        assert "<img" not in said

    def test_the_image_is_inside(self) -> None:
        said = FOUND.to_html(spot("red", (1, 2)), FakeEncoder())
        (source,) = re.findall(r'<img src="(.*?)"', said)
        shown = np.asarray(open_image(source), float)
        glow = (shown[..., 0] - shown[..., 2]).reshape(4, 96, 4, 96).mean(axis=(1, 3))
        assert np.unravel_index(glow.argmax(), GRID) == (1, 2)

    def test_words_are_escaped(self) -> None:
        word = "<script>alert('&\"')</script>"
        said = Explanation((TermMatch(word, word, 1.0, 1.0, 1.0),), 1.0).to_html()
        assert "<script" not in said
        assert "&lt;script&gt;alert(&#x27;&amp;&quot;&#x27;)&lt;/script&gt;" in said

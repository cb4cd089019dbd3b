"""The sparsity study on vectors so small that the answer is worked out by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import sparse

from lexvla.data.demo_corpus import DemoItem
from lexvla.encoding import Encoding
from lexvla.errors import OptionalDependencyError
from lexvla_search import cli
from lexvla_search.evaluation import crossmodal, sparsity
from lexvla_search.evaluation.batches import keep_heaviest
from lexvla_search.evaluation.retrieval import recall_at_k
from lexvla_search.evaluation.sparsity import (
    evaluate_sparsity,
    plot_sparsity,
)
from search_fakes import FakeEncoder, save_pictures

Capture = pytest.CaptureFixture[str]


def rows(*vectors: Sequence[float]) -> sparse.csr_array:
    return sparse.csr_array(np.array(vectors, dtype=np.float32))


def paired_recall(
    texts: sparse.csr_array, images: sparse.csr_array, image_of: Sequence[int]
) -> tuple[dict[int, float], dict[int, float]]:
    found = crossmodal.paired_recall_any(Encoding(texts), Encoding(images), image_of)
    return found.text_to_image, found.image_to_text


def test_the_heaviest_words_stay() -> None:
    vectors = rows([0.1, 0.4, 0, 0.3], [0, 0, 0, 0], [0.3, 0.4, 0.3, 0.3])
    two = keep_heaviest(vectors, 2)
    first, third = (0.26 / 0.25) ** 0.5, (0.43 / 0.25) ** 0.5  # back to the length they had
    expected = [[0, 0.4 * first, 0, 0.3 * first], [0] * 4, [0.3 * third, 0.4 * third, 0, 0]]
    assert np.allclose(two.toarray(), expected)
    assert two.has_canonical_format
    assert keep_heaviest(vectors, 0).nnz == 0
    assert (keep_heaviest(vectors, 4) != vectors).nnz == 0


weights = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 8)),
    elements=st.integers(0, 4).map(lambda n: n / 4),
)


@given(weights, st.integers(0, 9), st.integers(0, 9))
def test_cutting_is_a_matter_of_the_smaller_number(dense: np.ndarray, a: int, b: int) -> None:
    vectors = sparse.csr_array(dense)
    twice = keep_heaviest(keep_heaviest(vectors, a), b).toarray()
    once = keep_heaviest(vectors, min(a, b)).toarray()
    assert np.allclose(twice, once)
    for before, after in zip(dense, once, strict=True):
        kept = after > 0
        assert kept.sum() == min(min(a, b), (before > 0).sum())
        if kept.any():
            assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before))
            assert np.allclose(after[kept] / after.max(), before[kept] / before.max())
        if kept.any() and not kept.all():
            assert before[kept].min() >= before[~kept].max()


def test_recall_of_pairs() -> None:
    words = rows([1, 0, 0], [0, 1, 0], [0, 0, 0])
    texts = rows([1, 0, 0], [1, 1, 0], [0, 0, 1])
    # The second text is as like the first image as its own; the third shares no word with any.
    to_image, to_text = paired_recall(texts, words, [0, 1, 2])
    assert to_image == {1: 1 / 3, 5: 2 / 3, 10: 2 / 3}
    # The first image is as like the second text; the third has no word.
    assert to_text == {1: 1 / 3, 5: 2 / 3, 10: 2 / 3}


def test_of_an_images_texts_the_best_one_counts_and_none_is_in_its_way() -> None:
    images = rows([1, 0], [0, 1])
    texts = rows([0.1, 0], [0.8, 0], [0.8, 0], [0.5, 0.5], [0, 0])
    image_of = [0, 0, 0, 1, 1]
    to_image, to_text = paired_recall(texts, images, image_of)
    # The fourth text is like both images alike; the fifth like none.
    assert to_image == {1: 3 / 5, 5: 4 / 5, 10: 4 / 5}
    assert to_text == {1: 1.0, 5: 1.0, 10: 1.0}


@given(arrays(np.float32, (6, 5), elements=st.integers(0, 3)))
def test_one_text_an_image_is_plain_recall(texts: np.ndarray) -> None:
    images = np.roll(texts, 1, axis=1)
    scores = sparse.csr_array(sparse.csr_array(texts) @ sparse.csr_array(images).T)
    scores.eliminate_zeros()
    to_image, to_text = paired_recall(sparse.csr_array(texts), sparse.csr_array(images), range(6))
    assert to_image == recall_at_k(scores, range(6), (1, 5, 10))
    assert to_text == recall_at_k(sparse.csr_array(scores.T), range(6), (1, 5, 10))


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    texts = sparse.csr_array(random.integers(0, 3, (23, 9)).astype(np.float32))
    images = sparse.csr_array(random.integers(0, 3, (11, 9)).astype(np.float32))
    image_of = [*range(11), *random.integers(0, 11, 12).tolist()]
    whole = paired_recall(texts, images, image_of)
    monkeypatch.setattr(crossmodal, "_BLOCK", 4)
    assert paired_recall(texts, images, image_of) == whole


class WideFake(FakeEncoder):
    """Know four words; its own rule keeps the heaviest two of a text, and one of an image.

    A text is four weights; an image is a pixel whose channels are three.
    """

    def __init__(self) -> None:
        super().__init__(words=("a", "b", "c", "d"))
        self.config = SimpleNamespace(sparsification="mean", threshold=0.5)
        self.limits: list[int | None] = []

    def encode_text(self, texts: list[str], max_active_dims: int | None = None) -> Encoding:
        return self._cut([[float(w) for w in text.split()] for text in texts], 2, max_active_dims)

    def encode_image(self, images: list[Any], max_active_dims: int | None = None) -> Encoding:
        return self._cut([[*image.getpixel((0, 0)), 0] for image in images], 1, max_active_dims)

    def _cut(self, dense: list[list[float]], own: int, limit: int | None) -> Encoding:
        assert len(dense) <= 2
        self.limits.append(limit)
        loose = (self.config.sparsification, self.config.threshold) == ("threshold", 0.0)
        vectors = sparse.csr_array(np.array(dense, dtype=np.float32))
        return Encoding(
            keep_heaviest(vectors, limit or 4) if loose else keep_heaviest(vectors, own)
        )


TEXTS = ("3 2 1 0", "3 1 2 0", "3 0 0 0")
IMAGES = tuple(Image.new("RGB", (8, 8), colour) for colour in ((30, 20, 1), (30, 1, 20), (9, 0, 0)))


def test_the_study() -> None:
    model = WideFake()
    figures = evaluate_sparsity(model, IMAGES, TEXTS, kept=(1, 2, 9), batch_size=2)
    assert (figures.texts, figures.images, figures.vocabulary) == (3, 3, 4)
    assert (figures.side, figures.complete, figures.model) == ("both", True, "fake")
    assert [point.kept for point in figures.points] == [1, 2, 4]
    one, two, every = figures.points
    assert (one.words_per_text, one.words_per_image, one.sparsity_ratio) == (1, 1, 3 / 4)
    # Of the first word alone: the images of 30 tie, and come before that of 9.
    assert one.text_to_image[1] == 0
    # The texts tie with one another.
    assert one.image_to_text == {1: 0, 5: 1, 10: 1}
    assert two.words_per_text == two.words_per_image == 5 / 3
    assert two.sparsity_ratio == pytest.approx(1 - 5 / 3 / 4)
    assert two.text_to_image[1] == pytest.approx(2 / 3)
    assert every.words_per_text == every.words_per_image == 7 / 3
    assert every.text_to_image[1] == two.text_to_image[1]
    # By its own rule it keeps two words of a text but one of an image, where images tie.
    assert figures.own.kept is None
    assert (figures.own.words_per_text, figures.own.words_per_image) == (5 / 3, 1)
    assert figures.own.sparsity_ratio == pytest.approx(1 - 4 / 3 / 4)
    assert figures.own.text_to_image[1] == 0
    assert vars(model.config) == {"sparsification": "mean", "threshold": 0.5}
    assert set(model.limits) == {None}
    assert json.loads(json.dumps(figures.to_dict()))["points"][1]["kept"] == 2


def test_one_side_alone() -> None:
    texts = evaluate_sparsity(WideFake(), IMAGES, TEXTS, side="texts", kept=(1,), batch_size=2)
    assert [point.words_per_image for point in texts.points] == [1, 1]
    assert [point.words_per_text for point in texts.points] == [1, 7 / 3]
    assert texts.own.sparsity_ratio == pytest.approx(1 - 5 / 3 / 4)
    images = evaluate_sparsity(WideFake(), IMAGES, TEXTS, side="images", kept=(1,), batch_size=2)
    assert [point.words_per_text for point in images.points] == [5 / 3, 5 / 3]
    assert [point.words_per_image for point in images.points] == [1, 7 / 3]
    assert images.own.sparsity_ratio == 3 / 4


def test_memory_ends_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsity, "_MOST_WEIGHTS", 12)
    model = WideFake()
    figures = evaluate_sparsity(model, IMAGES, TEXTS, kept=(1, 2, 3), batch_size=2)
    assert [point.kept for point in figures.points] == [1, 2]
    assert not figures.complete
    assert set(model.limits) == {None, 2}


def test_the_model_keeps_its_rule() -> None:
    rules = []

    class Watched(WideFake):
        def encode_image(self, images: list[Any], **_: Any) -> Encoding:
            rules.append((self.config.sparsification, model.config.sparsification))
            return Encoding(rows(*[[1, 0, 0, 0]] * len(images)))

    model = Watched()
    evaluate_sparsity(model, IMAGES, TEXTS, batch_size=2)
    assert set(rules) == {("mean", "mean"), ("threshold", "mean")}


def test_what_does_not_pair_up() -> None:
    for images, texts, image_of in (
        (IMAGES, TEXTS[:2], None),
        (IMAGES, TEXTS, [0, 1]),
        (IMAGES, TEXTS, [0, 1, 3]),
        ((), (), None),
    ):
        with pytest.raises(ValueError, match="each text must have one of the images"):
            evaluate_sparsity(WideFake(), images, texts, image_of)


def test_the_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = evaluate_sparsity(WideFake(), IMAGES, TEXTS, batch_size=2)
    monkeypatch.delenv("DISPLAY", raising=False)
    for name in ("a.png", "a.svg", "b.svg"):
        plot_sparsity(figures, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1080, 456)
        assert len(picture.convert("RGB").getcolors(2**20) or ()) > 10
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionalDependencyError, match=r"pip install 'lexvla\[evaluation\]'"):
        plot_sparsity(figures, tmp_path / "c.png")


class TestCommand:
    @pytest.fixture(autouse=True)
    def model(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: FakeEncoder())
        yield

    def manifest(self, folder: Path, *lines: dict[str, Any]) -> str:
        save_pictures(folder)
        (folder / "bad.png").write_bytes(b"no image")
        records = [{"id": str(number), **line} for number, line in enumerate(lines)]
        path = folder / "pairs.jsonl"
        path.write_text("\n".join(json.dumps(record) for record in records))
        return str(path)

    def test_pairs(self, tmp_path: Path, capsys: Capture) -> None:
        source = self.manifest(
            tmp_path,
            {"image": "apple.png", "text": "red"},
            {"image": "apple.png", "text": "black red"},
            {"image": "flag.png", "text": "blue"},
            {"image": "absent.png", "text": "blue"},
            {"image": "bad.png", "text": "blue"},
            {"image": "bad.png", "text": "red"},
            {"text": "red"},
            {"image": "flag.png"},
        )
        plot = str(tmp_path / "plot.png")
        assert cli.main(["sparsity", source, "--json", "--plot", plot]) == 0
        out, err = capsys.readouterr()
        data = json.loads(out)
        assert (data["texts"], data["images"], data["plot"]) == (3, 2, plot)
        assert [reject["item"] for reject in data["rejected"]] == ["3", "4", "5", "6", "7"]
        assert data["rejected"][4]["rule"] == "needs an image and a text"
        assert data["rejected"][0]["where"] == f"{source}:4"
        assert err == "lexvla: rejected '3': no such file; 5 rejected in all\n"
        # The apple is red on black and the flag red on blue: "red" says nothing.
        assert data["own"]["text_to_image"]["1"] == pytest.approx(2 / 3)
        assert data["points"][0]["kept"] == 1
        assert Path(plot).is_file()
        assert cli.main(["sparsity", source, "--side", "texts"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("model fake: 3 texts, 2 images, 6 words; cut: texts; in percent\n")
        assert "\nthe model's rule" in out

    def test_the_demo(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        folder = save_pictures(tmp_path)
        items = [
            DemoItem(name, label, (), "g", "s", (folder / f"{name}.png").read_bytes())
            for name, label in (("apple", "red black"), ("lime", "green"), ("snow", "white"))
        ]
        monkeypatch.setattr("lexvla_search.cli.sparsity.load_demo_corpus", lambda _: items)
        assert cli.main(["sparsity", "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert data["own"]["text_to_image"]["1"] == 1
        assert (data["rejected"], data["plot"]) == ([], None)

    def test_failures(self, tmp_path: Path, capsys: Capture) -> None:
        source = self.manifest(tmp_path, {"text": "red"})
        for arguments, code, complaint in (
            ([source], 1, "nothing in"),
            ([str(tmp_path)], 1, "nothing in"),
            ([str(tmp_path / "none.jsonl")], 1, "no such file or folder"),
            (["--plot", str(tmp_path / "no" / "a.png")], 1, "its folder does not exist"),
        ):
            assert cli.main(["sparsity", *arguments]) == code
            out, err = capsys.readouterr()
            assert out == ""
            assert complaint in err

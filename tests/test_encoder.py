from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import sparse
from torch import Tensor

from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla.lexical_head import lexical_vector
from lexvla.preprocessing import preprocess
from lexvla.text_tower import TextTower
from lexvla.torch_model import TorchLexVLA
from model_fakes import GRID, picture, tiny_model

TEXTS = ["a red dog and the white horse", "hat", "two blue birds", "cat", "green hat", "red dog"]
PICTURES = [picture(seed) for seed in range(5)]


@pytest.fixture(scope="module")
def model() -> TorchLexVLA:
    return tiny_model()


def close(one: Encoding, other: Encoding) -> None:
    np.testing.assert_allclose(one.lexical.toarray(), other.lexical.toarray(), atol=1e-6)
    assert (one.patches is None) == (other.patches is None)
    if one.patches is not None:
        np.testing.assert_array_equal(one.patches, other.patches)


@torch.no_grad()
def expected(model: TorchLexVLA, logits: Tensor) -> np.ndarray:
    """Return what is above 1/sqrt(V) of the unit vectors, with unit length, by plain arithmetic."""
    vectors = lexical_vector(logits).numpy()
    kept = np.where(vectors > len(model.vocabulary) ** -0.5, vectors, 0)
    return kept / np.linalg.norm(kept, axis=1, keepdims=True)


@torch.no_grad()
def test_texts(model: TorchLexVLA) -> None:
    encoding = model.encode_text(TEXTS)
    assert encoding.lexical.shape == (6, len(model.vocabulary))
    assert encoding.lexical.dtype == np.float32
    assert encoding.patches is None
    rows = expected(model, model.text_logits(TEXTS))
    np.testing.assert_allclose(encoding.lexical.toarray(), rows, atol=1e-6)


@torch.no_grad()
def test_images(model: TorchLexVLA) -> None:
    encoding = model.encode_image(PICTURES)
    assert encoding.lexical.shape == (5, len(model.vocabulary))
    assert encoding.lexical.dtype == np.float32
    logits, place = model.image_logits(preprocess(PICTURES, 8 * GRID))
    rows = expected(model, logits)
    np.testing.assert_allclose(encoding.lexical.toarray(), rows, atol=1e-6)
    assert encoding.patches is not None
    assert encoding.patches.dtype == np.int16
    assert encoding.patches.tolist() == place.numpy()[rows > 0].tolist()


@pytest.mark.parametrize(
    "encode",
    [
        lambda model: model.encode_text([]),
        lambda model: model.encode_text(iter([])),
        lambda model: model.encode_image([]),
        lambda model: model.encode_words([]),
        lambda model: model.encode_patches([]),
        lambda model: model.encode_region([], []),
        lambda model: model.text_logits([]),
        lambda model: model.image_logits(torch.zeros(0, 3, 24, 24)),
    ],
)
def test_an_empty_batch_is_refused(
    model: TorchLexVLA, encode: Callable[[TorchLexVLA], object]
) -> None:
    with pytest.raises(InputError, match="at least one"):
        encode(model)


@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_the_batch_size_changes_nothing(model: TorchLexVLA, size: int) -> None:
    close(model.encode_text(TEXTS, batch_size=size), model.encode_text(TEXTS))
    close(model.encode_image(PICTURES, batch_size=size), model.encode_image(PICTURES))


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_at_least_one_item(model: TorchLexVLA, size: int) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        model.encode_text(TEXTS, batch_size=size)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        model.encode_image(PICTURES, batch_size=size)


def test_order_is_kept_though_texts_are_sorted_by_length(
    model: TorchLexVLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    forward = TextTower.forward

    def watched(self: TextTower, token_ids: list[list[int]], *cache: object) -> Tensor:
        lengths.extend(map(len, token_ids))
        return forward(self, token_ids, *cache)

    monkeypatch.setattr(TextTower, "forward", watched)
    whole = model.encode_text(TEXTS, batch_size=2)
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 2
    for row, text in zip(whole, TEXTS, strict=True):
        close(row, model.encode_text([text]))
    close(model.encode_text(TEXTS[::-1]), whole[::-1])


@pytest.mark.parametrize("text", ["", " ", "?!", "the and", "собака", "\n"])
def test_a_text_without_a_known_piece_has_an_empty_row(model: TorchLexVLA, text: str) -> None:
    encoding = model.encode_text(["red dog", text, "hat"])
    assert np.diff(encoding.lexical.indptr).astype(bool).tolist() == [True, False, True]


def test_a_word_beyond_the_limit_is_no_known_piece() -> None:
    model = tiny_model(max_text_tokens=3)
    encoding = model.encode_text(["the and the dog", "the and dog"])
    assert np.diff(encoding.lexical.indptr).astype(bool).tolist() == [False, True]


def test_one_text_is_not_a_list_of_letters(model: TorchLexVLA) -> None:
    with pytest.raises(TypeError, match="a list of texts"):
        model.encode_text("red dog")
    with pytest.raises(TypeError, match="a list of words"):
        model.encode_words("dog")
    with pytest.raises(TypeError, match="a list of images"):
        model.encode_image("dog.png")


def test_half_a_character_is_refused(model: TorchLexVLA) -> None:
    with pytest.raises(InputError, match="not valid Unicode") as caught:
        model.encode_text(["hat", "dog \udcff"])
    assert "dog" in caught.value.item


def test_max_active_dims(model: TorchLexVLA) -> None:
    for encoding, whole in (
        (model.encode_text(TEXTS, max_active_dims=2), model.encode_text(TEXTS)),
        (model.encode_image(PICTURES, max_active_dims=2), model.encode_image(PICTURES)),
    ):
        assert np.diff(encoding.lexical.indptr).max() == 2
        for found, heaviest in zip(
            model.decode(encoding), model.decode(whole, top_k=2), strict=True
        ):
            assert [word for word, _ in found] == [word for word, _ in heaviest]
            length = np.linalg.norm([weight for _, weight in heaviest])
            expected = [weight / length for _, weight in heaviest]
            assert [weight for _, weight in found] == pytest.approx(expected, rel=1e-5)


def test_the_configuration_says_how_vectors_are_cut() -> None:
    model = tiny_model(sparsification="top_k", kept_words=3)
    assert np.diff(model.encode_text(TEXTS).lexical.indptr).tolist() == [3] * 6
    model = tiny_model(sparsification="threshold", threshold=0.0)
    assert np.diff(model.encode_image(PICTURES).lexical.indptr).min() > 3


def test_decode(model: TorchLexVLA) -> None:
    words = [model.vocabulary.word(i) for i in range(4)]
    row = np.zeros((2, len(model.vocabulary)), np.float32)
    row[0, :4] = [0.25, 0.75, 0.25, 0.5]
    encoding = Encoding(sparse.csr_array(row))
    heaviest = [(words[1], 0.75), (words[3], 0.5), (words[0], 0.25), (words[2], 0.25)]
    assert model.decode(encoding) == [heaviest, []]
    assert model.decode(encoding, top_k=3) == [heaviest[:3], []]


def test_similarity(model: TorchLexVLA) -> None:
    queries, items = model.encode_text(TEXTS), model.encode_image(PICTURES)
    found = model.similarity(queries, items)
    assert found.shape == (6, 5)
    assert found.dtype == np.float32
    plain = queries.lexical.toarray() @ items.lexical.toarray().T
    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_the_heat_map_is_hottest_where_the_word_was_read(model: TorchLexVLA) -> None:
    assert model.patch_grid == (GRID, GRID)
    seen = set()
    for image in PICTURES:
        encoding = model.encode_image([image])
        assert encoding.patches is not None
        assert encoding.patches.min() >= 0
        assert encoding.patches.max() < GRID * GRID
        for column, patch in zip(encoding.lexical.indices, encoding.patches, strict=True):
            heat = model.heatmap(image, model.vocabulary.word(column))
            assert heat.shape == (GRID, GRID)
            assert heat.dtype == np.float32
            assert (heat >= 0).all()
            assert heat.argmax() == patch
            seen.add(int(patch))
    assert len(seen) > 2


def test_a_heat_map_over_the_length_of_what_is_kept_is_the_words_weight(model: TorchLexVLA) -> None:
    words = [model.vocabulary.word(i) for i in range(len(model.vocabulary))]
    raw = np.array([model.heatmap(PICTURES[0], word).max() for word in words])
    weights = model.encode_image(PICTURES[:1]).lexical
    expected = raw[weights.indices] / np.linalg.norm(raw[weights.indices])
    np.testing.assert_allclose(weights.data, expected, rtol=1e-5)


def test_a_heat_map_of_an_unknown_word(model: TorchLexVLA) -> None:
    with pytest.raises(KeyError, match="zebra"):
        model.heatmap(PICTURES[0], "zebra")


def test_paths_arrays_and_images_agree(model: TorchLexVLA, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PICTURES[0].save(path)
    forms = [PICTURES[0], path, str(path), path.read_bytes(), np.asarray(PICTURES[0])]
    encoding = model.encode_image(forms)
    for row in encoding:
        close(row, encoding[0])
    for form in forms:
        np.testing.assert_array_equal(model.heatmap(form, "dog"), model.heatmap(path, "dog"))


def test_a_broken_image_is_named(model: TorchLexVLA, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image at all")
    with pytest.raises(InputError, match=r"broken\.png") as caught:
        model.encode_image([PICTURES[0], broken])
    assert caught.value.item == str(broken)
    with pytest.raises(InputError, match=r"none\.png"):
        model.heatmap(tmp_path / "none.png", "dog")


def test_preprocess() -> None:
    white = preprocess([Image.new("RGB", (50, 20), "white")], 16)
    assert white.shape == (1, 3, 16, 16)
    assert white.dtype == torch.float32
    means, deviations = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for channel, mean, deviation in zip(white[0], means, deviations, strict=True):
        assert channel.flatten().tolist() == pytest.approx([(1 - mean) / deviation] * 256)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back_and_no_gradient_is_kept(training: bool) -> None:
    model = tiny_model().train(training)
    first, second = model.encode_text(TEXTS), model.encode_text(TEXTS)
    close(first, second)  # no dropout, though the model has it
    close(model.encode_image(PICTURES), model.encode_image(PICTURES))
    with pytest.raises(InputError):
        model.encode_image(["none.png"])
    assert model.training is training
    assert model.text_tower.training is training
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_is_shown_when_asked_for(
    model: TorchLexVLA, capfd: pytest.CaptureFixture[str]
) -> None:
    model.encode_text(TEXTS)
    assert capfd.readouterr().err == ""
    model.encode_text(TEXTS, show_progress_bar=True)
    assert "6/6" in capfd.readouterr().err


@pytest.mark.cuda
def test_a_gpu_gives_what_the_cpu_gives(model: TorchLexVLA) -> None:
    try:
        moved = model.to("cuda")
        texts, images = moved.encode_text(TEXTS), moved.encode_image(PICTURES)
    finally:
        model.to("cpu")
    for found, wanted in (
        (texts, model.encode_text(TEXTS)),
        (images, model.encode_image(PICTURES)),
    ):
        np.testing.assert_allclose(found.lexical.toarray(), wanted.lexical.toarray(), atol=2e-3)

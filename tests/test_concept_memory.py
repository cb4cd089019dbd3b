"""The memory of concepts, by itself and in a model."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from backbone_fakes import small
from lexvla.concept_memory import ConceptMemory, ConceptSizes, layout, roots
from lexvla.config import LexVLAConfig
from lexvla.image_tower import CachedCells
from lexvla.lexical_head import lexical_vector
from lexvla.model import LexVLA
from lexvla.preprocessing import preprocess
from memory_fakes import CHANNELS, CLASSES, FINE, GRID, SIDE, WIDTH, memory_model
from model_fakes import ITEMS, picture

SIZES = ConceptSizes(items=3, classes=2, channels=4, fine=2, layout=5, local=2)
PICTURES = [picture(i, (70, 50)) for i in (1, 2, 3)]
CLOSED = {
    *("whiten.weight", "whiten.bias", "layout.weight", "layout.bias"),
    *("classifier.weight", "classifier.bias", "item_keys", "layout_keys"),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def random_memory(width: int = 6) -> ConceptMemory:
    torch.manual_seed(1)
    memory = ConceptMemory(SIZES, width)
    for weight in memory.parameters():
        nn.init.normal_(weight)
    return memory


def random_cells(images: int = 2, side: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, side**2, SIZES.channels + 4 * SIZES.fine, generator=generator)


@pytest.fixture(scope="module")
def model(classified: Path) -> LexVLA:
    return memory_model(classified)


# By itself


def plain_linear(layer: nn.Linear, vector: list[float]) -> list[float]:
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [dot(row, vector) + more for row, more in zip(weight, bias, strict=True)]


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(dot(vector, vector))
    return [value / length for value in vector]


def root(value: float) -> float:
    return math.sqrt(max(value, 0))


def plain_layout(cells: list[list[float]], side: int, fine: int) -> list[float]:
    """Return means over thirds, a third's border cells being those that it touches."""
    found = []
    for channel, (row, column) in itertools.product(
        range(fine), itertools.product(range(3), repeat=2)
    ):
        spans = [
            range(number * side // 3, -(-(number + 1) * side // 3)) for number in (row, column)
        ]
        values = [
            sum(cells[y * side + x][4 * channel : 4 * channel + 4]) / 4
            for y, x in itertools.product(*spans)
        ]
        found.append(sum(values) / len(values))
    return found


def plain_whole(memory: ConceptMemory, cells: list[list[float]], side: int) -> list[float]:
    channels = SIZES.channels
    own = [cell[:channels] for cell in cells]
    pooled = [sum(root(cell[c]) for cell in own) / len(own) for c in range(channels)]
    means = [sum(cell[c] for cell in own) / len(own) for c in range(channels)]
    looks = unit(plain_linear(memory.whiten, pooled))
    finer = plain_layout([cell[channels:] for cell in cells], side, SIZES.fine)
    shape = unit(plain_linear(memory.layout, finer))
    keys = zip(memory.item_keys.tolist(), memory.layout_keys.tolist(), strict=True)
    items = [dot(looks, key) + dot(shape, other) for key, other in keys]
    return items + plain_linear(memory.classifier, means)


def plain_forward(
    memory: ConceptMemory, cells: list[list[float]], whole: list[float]
) -> list[list[float]]:
    image_items, image_classes, patch_items, patch_classes = memory.scales.tolist()
    found = []
    for cell in cells:
        own = cell[: SIZES.channels]
        local = plain_linear(memory.local, [root(value) for value in own])
        scores = [
            image_items * whole[item] + patch_items * dot(local, key)
            for item, key in enumerate(memory.local_keys.tolist())
        ]
        scores += [
            image_classes * whole[SIZES.items + number]
            + patch_classes * logit
            + memory.class_bias.item()
            for number, logit in enumerate(plain_linear(memory.classifier, own))
        ]
        shares = [math.exp(score - max(scores)) for score in scores]
        values = memory.values.tolist()
        found.append(
            [
                sum(share * row[column] for share, row in zip(shares, values, strict=True))
                / sum(shares)
                for column in range(len(values[0]))
            ]
        )
    return found


@pytest.mark.parametrize("side", [3, 4, 7])
def test_whole_and_forward_are_what_plain_loops_give(side: int) -> None:
    memory, cells = random_memory(), random_cells(2, side)
    with torch.no_grad():
        whole = memory.whole(cells)
        read = memory(cells, whole)
    assert whole.shape == (2, SIZES.items + SIZES.classes)
    assert read.shape == (2, side**2, 6)
    for image, plain in enumerate(cells.tolist()):
        expected = plain_whole(memory, plain, side)
        assert whole[image].tolist() == pytest.approx(expected, abs=2e-5)
        rows = plain_forward(memory, plain, expected)
        np.testing.assert_allclose(read[image].numpy(), rows, atol=5e-5)


def test_some_cells_read_what_they_read_among_all() -> None:
    memory, cells = random_memory(), random_cells(3, 4)
    whole = memory.whole(cells)
    chosen = [0, 3, 9, 15]
    torch.testing.assert_close(memory(cells[:, chosen], whole), memory(cells, whole)[:, chosen])


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_what_a_patch_reads_is_a_mean_of_values(seed: int, side: int) -> None:
    memory, cells = random_memory(), random_cells(2, side, seed)
    with torch.no_grad():
        for part in (memory.item_keys, memory.layout_keys):
            part.copy_(nn.functional.normalize(part, dim=1))
        whole = memory.whole(cells)
        read = memory(cells, whole)
    assert (whole[:, : SIZES.items].abs() <= 2 + 1e-5).all()  # two cosines
    assert (read <= memory.values.max(0).values + 1e-5).all()
    assert (read >= memory.values.min(0).values - 1e-5).all()
    # Patches know their place by the layout of the whole image alone.
    order = torch.from_numpy(np.random.default_rng(seed).permutation(side**2))
    torch.testing.assert_close(memory(cells[:, order], whole), read[:, order])


def test_a_sure_memory_gives_the_value_of_one_concept() -> None:
    memory, cells = random_memory(), random_cells()
    whole = torch.zeros(2, SIZES.items + SIZES.classes)
    whole[0, 1] = whole[1, SIZES.items] = 1
    with torch.no_grad():
        memory.scales.copy_(torch.tensor([1e4, 1e4, 0, 0]))
        read = memory(cells, whole)
    torch.testing.assert_close(read[0], memory.values[1].expand(9, -1))
    torch.testing.assert_close(read[1], memory.values[SIZES.items].expand(9, -1))


def test_an_item_without_a_key_has_no_cosine() -> None:
    memory, cells = random_memory(), random_cells()
    with torch.no_grad():
        memory.item_keys[1] = memory.layout_keys[1] = 0
    assert memory.whole(cells)[:, 1].tolist() == [0, 0]


def test_roots() -> None:
    assert roots(torch.tensor([-4.0, 0.0, 0.25, 9.0])).tolist() == [0, 0, 0.5, 3]


def test_a_layout_of_three_rows_is_the_cells_themselves() -> None:
    # Channel 0 is 4 in each finer cell of the first cell, channel 1 in one of the last.
    fine = torch.zeros(1, 9, 8)
    fine[0, 0, :4] = 4
    fine[0, 8, 7] = 4
    expected = [4.0, *[0.0] * 16, 1.0]
    assert layout(fine)[0].tolist() == expected


@given(st.integers(1, 9), st.integers(0, 10**6))
def test_a_layout_is_the_means_of_thirds(side: int, seed: int) -> None:
    fine = torch.randn(2, side**2, 12, generator=torch.Generator().manual_seed(seed))
    found = layout(fine)
    assert found.shape == (2, 27)
    for row, cells in zip(found.tolist(), fine.tolist(), strict=True):
        assert row == pytest.approx(plain_layout(cells, side, 3), abs=1e-5)


def test_closed_form_weights_stay() -> None:
    memory, cells = random_memory(), random_cells()
    memory(cells, memory.whole(cells)).square().sum().backward()
    fixed = {name for name, weight in memory.named_parameters() if not weight.requires_grad}
    assert fixed == CLOSED
    assert {id(weight) for weight in memory.closed_form} == {
        id(weight) for name, weight in memory.named_parameters() if name in CLOSED
    }
    for name, weight in memory.named_parameters():
        if name in CLOSED:
            assert weight.grad is None, name
        else:
            assert weight.grad is not None, name
            assert weight.grad.any(), name


def test_an_empty_memory_reads_nothing() -> None:
    memory = ConceptMemory(SIZES, 6)
    cells = random_cells()
    assert not memory(cells, memory.whole(cells)).any()


# Its configuration


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fine_stage": False}, "concept_items needs .* with its fine_stage"),
        ({"adapter_input": 15}, "adapter_heads=2 does not divide the adapter's width 15"),
    ],
)
def test_sizes_that_do_not_go_together(
    classified: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        memory_model(classified, **changes)


def test_what_a_transformer_has_not(text_model: str, vision_model: str) -> None:
    for changes, words in (
        ({"adapter_input": 12}, "adapter_input is not for dinov2"),
        ({"concept_items": 3}, "concept_items needs a convolutional vision model"),
    ):
        with pytest.raises(ValueError, match=words):
            LexVLA.from_backbones(text_model, vision_model, **small(**changes))


def test_an_image_side_of_its_own_width(text_model: str, vision_model: str) -> None:
    plain = LexVLA.from_backbones(text_model, vision_model, **small())
    assert plain.config.lexical_width == plain.image_codebook.shape[1] == 16
    assert torch.equal(plain.image_codebook, plain.text_codebook())
    model = LexVLA.from_backbones(text_model, vision_model, **small(image_width=10))
    words = len(model.vocabulary)
    assert model.config.lexical_width == 10
    assert model.image_codebook.shape == (words, 10)
    assert model.text_codebook().shape == (words, 16)
    images, texts = model.encode_image(PICTURES), model.encode_text(["red dog"])
    assert images.lexical.shape == (3, words)
    assert images.dense.shape[1] == texts.dense.shape[1]
    assert np.isfinite(model.similarity(texts, images)).all()


def test_what_an_encoding_follows_from_is_in_its_name(model: LexVLA, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = LexVLAConfig.from_pretrained(tmp_path)
    name = config.fingerprint
    config.known_tokens = [5, 9]
    assert config.fingerprint != name


# In a model


def normalised(model: LexVLA) -> Tensor:
    return preprocess(PICTURES, SIDE, model.config.image_mean, model.config.image_std)


def test_a_model_has_the_sizes_of_its_network(model: LexVLA) -> None:
    memory = model.image_tower.memory
    assert memory is not None
    assert memory.sizes == (len(ITEMS), CLASSES, CHANNELS, FINE, 6, 2)
    assert memory.values.shape == (len(ITEMS) + CLASSES, WIDTH)
    assert not any(weight.requires_grad for weight in model.image_tower.vision_model.parameters())
    assert model.config.vision_model is None


def test_the_memory_adds_to_what_the_adapter_gives(model: LexVLA) -> None:
    tower = model.image_tower
    with torch.no_grad():
        cells = tower.cells(normalised(model))
        own = tower.adapter(tower.adapter_input(cells))
        read = tower.memory(cells, tower.memory.whole(cells))
        assert torch.equal(tower(normalised(model)), own + read)
        assert read.abs().max() > 0.01
        assert torch.equal(tower.adapt(cells), tower.adapt(cells, tower.memory.whole(cells)))
        # Of some patches alone the memory still says what it says of the whole image.
        whole = tower.memory.whole(cells)
        some = tower.adapt(cells[:, [1, 5]], whole)
        expected = tower.adapter(tower.adapter_input(cells[:, [1, 5]])) + read[:, [1, 5]]
    torch.testing.assert_close(some, expected)


def test_cells_that_are_kept_give_the_features_of_their_pixels(model: LexVLA) -> None:
    ids = model.prompt_ids(["red dog", "hat"])
    with torch.no_grad():
        cells = model.image_tower.cells(normalised(model))
        kept = CachedCells(cells, model.image_tower.memory.whole(cells))
        assert len(kept) == 3
        found = model(kept[:2], ids, dense=True, logits=True)[0]
        plain = model(CachedCells(cells[:2]), ids, dense=True, logits=True)[0]
        expected = model(normalised(model)[:2], ids, dense=True, logits=True)[0]
    for one, two, other in zip(found, plain, expected, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(two, other, atol=1e-5, rtol=1e-4)
    moved = kept.to(torch.device("cpu"))
    assert torch.equal(moved.cells, kept.cells)
    assert CachedCells(cells).to(torch.device("cpu"))[1:].whole is None


def test_every_way_of_encoding(model: LexVLA) -> None:
    images = model.encode_image(PICTURES)
    words = len(model.vocabulary)
    assert images.lexical.nnz
    assert images.patches is not None
    assert set(images.patches.tolist()) <= set(range(GRID**2))
    with torch.no_grad():
        logits, place = model.image_logits(normalised(model))
    torch.testing.assert_close(
        torch.from_numpy(images.lexical.toarray()).max(1).values,
        lexical_vector(logits).max(1).values,
        atol=1e-5,
        rtol=1e-4,
    )
    columns = [0, 3, words - 1]
    heat = model.heatmaps(PICTURES[0], columns)
    assert heat.shape == (3, GRID, GRID)
    flat = heat.reshape(3, -1)
    np.testing.assert_allclose(flat[range(3), place[0, columns]], flat.max(1), rtol=1e-5)
    patches = model.encode_patches(PICTURES[:1])
    assert len(patches) == GRID**2
    region = model.encode_region(PICTURES[:1], [(0, 0, 20, 50)])
    assert set(region.patches.tolist()) <= {0, 3, 6}
    whole = model.encode_region(PICTURES[:1], [(0, 0, 70, 50)])
    np.testing.assert_allclose(whole.lexical.toarray(), images[0].lexical.toarray(), atol=1e-5)


def encodings(model: LexVLA) -> list[np.ndarray]:
    images, texts = model.encode_image(PICTURES), model.encode_text(["a red dog", "two hats"])
    found = [images.lexical.toarray(), images.patches, images.dense, images.codes.toarray()]
    return [*found, texts.lexical.toarray(), texts.dense]


def assert_same_model(one: LexVLA, other: LexVLA) -> None:
    """A model that is loaded has another kernel for attention over text."""
    pairs = list(zip(encodings(one), encodings(other), strict=True))
    for mine, yours in pairs[:4]:
        np.testing.assert_array_equal(mine, yours)
    for mine, yours in pairs[4:]:
        np.testing.assert_allclose(mine, yours, atol=1e-5)


def test_saved_and_loaded_bit_by_bit(model: LexVLA, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = LexVLA.from_pretrained(tmp_path)
    assert loaded.config.vision_model is None
    assert (tmp_path / "vision_model" / "model.safetensors").is_file()
    own, found = model.state_dict(), loaded.state_dict()
    assert own.keys() == found.keys()
    for name, weight in own.items():
        assert torch.equal(weight, found[name]), name
    assert_same_model(loaded, model)
    memory = loaded.image_tower.memory
    assert memory is not None
    assert not any(weight.requires_grad for weight in memory.closed_form)
    assert memory.values.requires_grad


def test_saved_in_half_precision(classified: Path, tmp_path: Path) -> None:
    model = memory_model(classified).half()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["image_tower.memory.item_keys"].dtype == torch.float16
    loaded = LexVLA.from_pretrained(tmp_path)
    assert_same_model(loaded, model.float())
    low = LexVLA.from_pretrained(tmp_path, dtype="bfloat16")
    assert low.encode_image(PICTURES).lexical.shape == (3, len(low.vocabulary))


# Words that are known without being in the vocabulary


def test_a_known_word_need_not_be_in_the_vocabulary(classified: Path, tmp_path: Path) -> None:
    others = ["a zebra’s savanna", "the zebra", "dog"]
    model = memory_model(classified, others=others)
    known = {model.tokenizer.convert_ids_to_tokens(i) for i in range(*model.config.known_tokens)}
    assert known == {"▁zebra", "▁savanna"}
    assert model.vocabulary.find("zebra") is None
    model.save_pretrained(tmp_path)
    for each in (model, LexVLA.from_pretrained(tmp_path)):
        rows = each.encode_text(["zebra", "Savanna!", "red zebra", "dog", "the", "xqv", "", "!"])
        counts = np.diff(rows.lexical.indptr)
        assert (counts[:4] > 0).all()
        assert not counts[4:].any()


def test_without_other_texts_no_more_words_are_known(model: LexVLA) -> None:
    assert model.config.known_tokens == [0, 0]
    counts = np.diff(model.encode_text(["dog", "zebra", "the"]).lexical.indptr)
    assert counts[0] > 0
    assert not counts[1:].any()
    model.config.known_tokens = [0, len(model.tokenizer)]
    try:
        assert (np.diff(model.encode_text(["zebra", "the"]).lexical.indptr) > 0).all()
    finally:
        model.config.known_tokens = [0, 0]


def test_a_part_of_a_word_of_the_captions_makes_no_letter_known(classified: Path) -> None:
    """The word "ca" is a smaller piece too, and stands among letters."""
    others = ["ca zebra savanna okapi"]
    model = memory_model(classified, others=others)
    assert not np.diff(model.encode_text(["x", "g", "q w"]).lexical.indptr).any()
    assert np.diff(model.encode_text(["okapi"]).lexical.indptr) > 0

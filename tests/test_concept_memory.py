"""The memory of concepts, by itself and in a model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import load_file
from torch import Tensor, nn

from backbone_fakes import small
from lexvla.concept_memory import ConceptMemory, ConceptSizes, layout, roots, with_level
from lexvla.config import LexVLAConfig
from lexvla.errors import ModelError
from lexvla.image_tower import CachedCells
from lexvla.lexical_head import lexical_vector, max_over_patches, sparsify
from lexvla.preprocessing import preprocess
from lexvla.saving import _dense, _sparse_parts
from lexvla.torch_model import TorchLexVLA
from memory_fakes import CHANNELS, CLASSES, FINE, GRID, SIDE, memory_model
from model_fakes import ITEMS, edit_weights, picture, tiny_model

SIZES = ConceptSizes(items=3, classes=2, channels=4, fine=2, layout=5, local=2)
CONCEPTS = SIZES.items + SIZES.classes
PICTURES = [picture(i, (70, 50)) for i in (1, 2, 3)]

pytestmark = pytest.mark.usefixtures("one_thread")


def random_memory() -> ConceptMemory:
    torch.manual_seed(1)
    memory = ConceptMemory(SIZES)
    for weight in memory.parameters():
        nn.init.normal_(weight)
    memory.scales[4] = 0.5
    return memory


def random_cells(images: int = 2, side: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, side**2, SIZES.channels + 4 * SIZES.fine, generator=generator)


@pytest.fixture(scope="module")
def model(classified: Path) -> TorchLexVLA:
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
    """Return means over thirds, whose border cells are those that they touch; then deviations."""
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
    for channel in range(fine):
        values = [sum(cell[4 * channel : 4 * channel + 4]) / 4 for cell in cells]
        mean = sum(values) / len(values)
        found.append(math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)))
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


def plain_shares(memory: ConceptMemory, whole: list[float]) -> list[float]:
    of_items, of_classes, *_, gate = memory.scales.tolist()
    items = plain_softmax([of_items * value for value in whole[: SIZES.items]])
    classes = plain_softmax([of_classes * value for value in whole[SIZES.items :]])
    sure = max(items) ** gate
    shares = [sure * share for share in items] + [(1 - sure) * share for share in classes]
    return [share if share >= 0.001 else 0.0 for share in shares]


def plain_softmax(logits: list[float]) -> list[float]:
    shown = [math.exp(logit - max(logits)) for logit in logits]
    return [value / sum(shown) for value in shown]


def plain_forward(
    memory: ConceptMemory, cells: list[list[float]], whole: list[float]
) -> list[list[float]]:
    patch_items, patch_classes = memory.scales.tolist()[2:4]
    evidence = []
    for cell in cells:
        own = cell[: SIZES.channels]
        local = plain_linear(memory.local, [root(value) for value in own])
        items = [patch_items * dot(local, key) for key in memory.local_keys.tolist()]
        classes = [patch_classes * logit for logit in plain_linear(memory.classifier, own)]
        evidence.append(items + classes)
    best = [max(column) for column in zip(*evidence, strict=True)]
    shares = plain_shares(memory, whole)
    return [
        [s * math.exp(e - b) for s, e, b in zip(shares, row, best, strict=True)] + [1.0]
        for row in evidence
    ]


@pytest.mark.parametrize("side", [3, 4, 7])
@pytest.mark.parametrize("scale", [1.0, 8.0])  # of whole images: 8 leaves out some concepts
def test_whole_and_forward_are_what_plain_loops_give(side: int, scale: float) -> None:
    memory, cells = random_memory(), random_cells(2, side)
    memory.scales[:2] *= scale
    whole = memory.whole(cells)
    read = memory(cells, whole)
    assert whole.shape == (2, CONCEPTS)
    assert read.shape == (2, side**2, CONCEPTS + 1)
    for image, plain in enumerate(cells.tolist()):
        expected = plain_whole(memory, plain, side)
        assert whole[image].tolist() == pytest.approx(expected, abs=2e-5)
        rows = plain_forward(memory, plain, whole[image].tolist())
        np.testing.assert_allclose(read[image].numpy(), rows, atol=5e-5)
        shares = plain_shares(memory, whole[image].tolist())
        assert (0.0 in shares) == (scale == 8)
        assert memory.shares(whole)[image].tolist() == pytest.approx(shares, abs=5e-5)


def test_states_worked_out_by_hand() -> None:
    """The image shows an item by 3/4 and a class by 1/4."""
    memory = ConceptMemory(ConceptSizes(2, 1, channels=1, fine=1, layout=1, local=1))
    for weight, value in (
        (memory.local.weight, 1.0),
        (memory.local.bias, 5.0),
        (memory.local_keys, 2.0),
        (memory.classifier.weight, -1.0),
        (memory.classifier.bias, 7.0),
    ):
        weight.fill_(value)
    memory.local_keys[1] = 0  # which all patches show alike
    memory.scales.copy_(torch.tensor([2.0, 1.0, math.log(2), math.log(3), 0.5]))
    # The items' probabilities are 0.64 and 0.36, so they have 0.8 of the image. Of its patches the
    # first item's evidence is 2 (root + 5) log 2, the class's (7 - cell) log 3.
    cells = torch.zeros(1, 3, 5)
    cells[0, :, 0] = torch.tensor([4.0, 1.0, 0.0])
    found = memory(cells, torch.tensor([[math.log(16 / 9) / 2, 0.0, 0.0]]))
    expected = [
        [0.512, 0.288, 0.2 / 81, 1],
        [0.512 / 4, 0.288, 0.2 / 3, 1],
        [0.512 / 16, 0.288, 0.2, 1],
    ]
    torch.testing.assert_close(found[0], torch.tensor(expected))


def test_some_cells_are_compared_with_one_another() -> None:
    memory, cells = random_memory(), random_cells(3, 4)
    whole = memory.whole(cells)
    chosen = [0, 3, 9, 15]
    found, full = memory(cells[:, chosen], whole), memory(cells, whole)[:, chosen]
    concepts = full[..., :-1]
    expected = concepts / concepts.amax(1, keepdim=True) * memory.shares(whole)[:, None]
    torch.testing.assert_close(found[..., :-1], expected)
    torch.testing.assert_close(memory(cells[:, :1], whole)[:, 0, :-1], memory.shares(whole))


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_the_best_patch_of_a_concept_says_what_the_whole_image_says(seed: int, side: int) -> None:
    memory, cells = random_memory(), random_cells(2, side, seed)
    for part in (memory.item_keys, memory.layout_keys):
        part.copy_(nn.functional.normalize(part, dim=1))
    whole = memory.whole(cells)
    read, shares = memory(cells, whole), memory.shares(whole)
    assert (whole[:, : SIZES.items].abs() <= 2 + 1e-5).all()  # two cosines
    assert torch.equal(read[..., :-1].amax(1), shares)
    assert (read[..., :-1] <= shares[:, None]).all()
    assert (read >= 0).all()
    assert (read[..., -1] == 1).all()
    # Patches know their place by the layout of the whole image alone.
    order = torch.from_numpy(np.random.default_rng(seed).permutation(side**2))
    torch.testing.assert_close(memory(cells[:, order], whole), read[:, order])


@given(st.lists(st.floats(-9, 9, width=32), min_size=CONCEPTS, max_size=CONCEPTS))
def test_shares_add_up_to_what_small_ones_leave(scores: list[float]) -> None:
    memory = random_memory()
    memory.scales.copy_(torch.tensor([2.0, 0.5, 1, 1, 0.5]))
    found = memory.shares(torch.tensor([scores, scores]))
    assert torch.equal(found[0], found[1])
    kept = found[0] > 0
    assert (found[0][kept] >= 0.001).all()
    assert 1 - 0.001 * CONCEPTS < found[0].sum() <= 1 + 1e-6
    items, classes = torch.tensor(scores).split([SIZES.items, SIZES.classes])
    items, classes = (2 * items).softmax(0), (0.5 * classes).softmax(0)
    sure = items.max().sqrt()
    expected = torch.cat([sure * items, (1 - sure) * classes])
    torch.testing.assert_close(found[0][kept], expected[kept])


def test_shares_of_little_are_none() -> None:
    memory = random_memory()
    memory.scales.fill_(1)
    parts = torch.tensor([0.8, 0.001, 0.199, 0.004, 0.996])
    found = memory.shares(parts.log()[None])
    # The items have 0.8 of it and the classes 0.2.
    torch.testing.assert_close(found[0], torch.tensor([0.64, 0, 0.1592, 0, 0.1992]))
    assert found[0, 1] == found[0, 3] == 0


def test_a_sure_memory_shows_one_concept() -> None:
    memory, cells = random_memory(), random_cells(1)
    whole = torch.zeros(1, CONCEPTS)
    whole[0, 1] = 1
    memory.scales.copy_(torch.tensor([1e4, 1e4, 0, 0, 0.2]))
    expected = torch.zeros(CONCEPTS + 1)
    expected[[1, CONCEPTS]] = 1
    assert torch.equal(memory(cells, whole)[0], expected.expand(9, -1))


def test_the_less_sure_of_items_the_more_a_class_counts() -> None:
    memory = random_memory()
    memory.scales.copy_(torch.tensor([1e4, 1e4, 0, 0, 0.5]))
    whole = torch.zeros(1, CONCEPTS)
    whole[0, SIZES.items] = 1  # and the three items are equally likely
    sure = (1 / 3) ** 0.5
    expected = [sure / 3] * 3 + [1 - sure, 0]
    assert memory.shares(whole)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_shares_are_shared_out_in_32_bits(dtype: torch.dtype) -> None:
    """And states are of the cells' type."""
    memory, cells = random_memory().to(dtype), random_cells().to(dtype)
    whole = memory.whole(cells)
    assert memory.shares(whole).dtype == torch.float32
    assert memory(cells, whole).dtype == dtype
    torch.testing.assert_close(
        memory(cells, whole)[..., :-1].amax(1), memory.shares(whole).to(dtype)
    )


def test_a_one_stands_behind_what_is_shown() -> None:
    shown = torch.tensor([[[0.25, 0.0], [0.5, 0.125]]])
    assert with_level(shown).tolist() == [[[0.25, 0, 1], [0.5, 0.125, 1]]]
    assert with_level(shown[0, 0].double()).tolist() == [0.25, 0, 1]


def test_an_item_without_a_key_has_no_cosine() -> None:
    memory, cells = random_memory(), random_cells()
    memory.item_keys[1] = memory.layout_keys[1] = 0
    assert memory.whole(cells)[:, 1].tolist() == [0, 0]


def test_roots() -> None:
    assert roots(torch.tensor([-4.0, 0.0, 0.25, 9.0])).tolist() == [0, 0, 0.5, 3]


def test_a_layout_of_three_rows_is_the_cells_themselves() -> None:
    # Channel 0 is 4 in each finer cell of the first cell, channel 1 in one of the last.
    fine = torch.zeros(1, 9, 8)
    fine[0, 0, :4] = 4
    fine[0, 8, 7] = 4
    # Nine values, one of them v: the mean is v/9 and the variance v * v * 8/81.
    deviations = [4 * math.sqrt(8) / 9, math.sqrt(8) / 9]
    found = layout(fine)[0].tolist()
    assert found[:18] == [4.0, *[0.0] * 16, 1.0]
    assert found[18:] == pytest.approx(deviations, abs=1e-6)


@given(st.integers(1, 9), st.integers(0, 10**6))
def test_a_layout_is_means_of_thirds_and_deviations(side: int, seed: int) -> None:
    fine = torch.randn(2, side**2, 12, generator=torch.Generator().manual_seed(seed))
    found = layout(fine)
    assert found.shape == (2, 30)
    for row, cells in zip(found.tolist(), fine.tolist(), strict=True):
        assert row == pytest.approx(plain_layout(cells, side, 3), abs=1e-5)


def test_no_weight_asks_for_a_gradient() -> None:
    memory, cells = random_memory(), random_cells()
    assert len(list(memory.parameters())) == 12
    assert not any(weight.requires_grad for weight in memory.parameters())
    assert not memory(cells, memory.whole(cells)).requires_grad
    # A vision model that is trained still gets one.
    cells.requires_grad_()
    memory(cells, memory.whole(cells)).square().sum().backward()
    assert cells.grad is not None
    assert cells.grad.isfinite().all()
    assert cells.grad.any()


def test_an_unfilled_memory_knows_no_item_from_another() -> None:
    memory, cells = ConceptMemory(SIZES), random_cells()
    read = memory(cells, memory.whole(cells))
    assert (memory.whole(cells)[:, : SIZES.items] == 0).all()
    items = read[..., : SIZES.items]
    assert torch.equal(items, items[:, :1, :1].expand_as(items))


# Its configuration


def test_a_memory_needs_the_fine_stage(classified: Path) -> None:
    with pytest.raises(ValueError, match=r"concept_items needs .* with its fine_stage"):
        memory_model(classified, fine_stage=False)


def test_a_transformer_has_no_memory(text_model: str, vision_model: str) -> None:
    with pytest.raises(ValueError, match="concept_items needs a convolutional vision model"):
        TorchLexVLA.from_backbones(text_model, vision_model, **small(concept_items=3))


def test_heads_need_not_divide_what_no_adapter_has(classified: Path) -> None:
    assert memory_model(classified, adapter_heads=5).image_tower.adapter is None
    with pytest.raises(ValueError, match="adapter_heads=5 does not divide the adapter's width"):
        memory_model(classified, adapter_heads=5, concept_items=0)


def test_the_image_side_has_a_width_of_its_own(classified: Path) -> None:
    model = memory_model(classified)
    words, concepts = len(model.vocabulary), len(ITEMS) + CLASSES
    assert model.config.lexical_width == concepts + 1
    assert model.image_codebook.shape == (words, concepts + 1)
    assert model.text_codebook().shape == (words, 16)
    images, texts = model.encode_image(PICTURES), model.encode_text(["red dog"])
    assert images.lexical.shape == (3, words)
    assert images.dense.shape[1] == texts.dense.shape[1]
    assert np.isfinite(model.similarity(texts, images)).all()
    # Without a memory, classes are of nothing.
    plain = memory_model(classified, concept_items=0)
    assert plain.image_tower.memory is None
    assert plain.image_tower.adapter is not None
    assert plain.config.lexical_width == 16
    assert torch.equal(plain.image_codebook, plain.text_codebook())


def test_an_image_codebook_begins_empty(classified: Path) -> None:
    config = memory_model(classified).config
    model = memory_model(classified)
    made = TorchLexVLA(config, model.vocabulary, model.tokenizer)
    assert made.image_codebook.shape == model.image_codebook.shape
    assert not made.image_codebook.any()


def test_what_an_encoding_follows_from_is_in_its_name(model: TorchLexVLA, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = LexVLAConfig.from_pretrained(tmp_path)
    name = config.fingerprint
    config.known_tokens = [5, 9]
    assert config.fingerprint != name


# In a model


def normalised(model: TorchLexVLA) -> Tensor:
    return preprocess(PICTURES, SIDE, model.config.image_mean, model.config.image_std)


def test_a_model_has_the_sizes_of_its_network(model: TorchLexVLA) -> None:
    memory = model.image_tower.memory
    assert memory is not None
    assert memory.sizes == (len(ITEMS), CLASSES, CHANNELS, FINE, 6, 2)
    assert memory.layout.weight.shape == (6, 10 * FINE)
    assert model.image_tower.adapter is None
    assert not any("adapter" in name for name in model.state_dict())
    assert not any(weight.requires_grad for weight in memory.parameters())
    assert not any(weight.requires_grad for weight in model.image_tower.vision_model.parameters())
    assert model.config.vision_model is None


def test_the_memory_stands_in_the_adapters_place(model: TorchLexVLA) -> None:
    tower = model.image_tower
    with torch.no_grad():
        cells = tower.cells(normalised(model))
        whole = tower.memory.whole(cells)
        assert torch.equal(tower(normalised(model)), tower.memory(cells, whole))
        assert torch.equal(tower.adapt(cells), tower.adapt(cells, whole))
        # Of some patches alone the memory still says what it says of the whole image.
        some = tower.adapt(cells[:, [1, 5]], whole)
    assert torch.equal(some, tower.memory(cells[:, [1, 5]], whole))
    torch.testing.assert_close(some[..., :-1].amax(1), tower.memory.shares(whole))


def test_an_images_words_are_those_of_its_concepts(model: TorchLexVLA) -> None:
    """Where no concept speaks against a word, its best patch says what the whole image says."""
    with torch.no_grad():
        cells = model.image_tower.cells(normalised(model))
        shares = model.image_tower.memory.shares(model.image_tower.memory.whole(cells))
        logits, _ = model.image_logits(normalised(model))
        rows = model.image_codebook[:, :-1]
        most = shares @ rows.clamp(min=0).T + model.image_codebook[:, -1]
    assert (logits <= most + 1e-5).all()
    lone = ((rows != 0).sum(1) == 1) & (rows >= 0).all(1)
    assert lone.any()
    torch.testing.assert_close(logits[:, lone], most[:, lone])


def test_cells_that_are_kept_give_the_features_of_their_pixels(model: TorchLexVLA) -> None:
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


def test_every_way_of_encoding(model: TorchLexVLA) -> None:
    images = model.encode_image(PICTURES)
    words = len(model.vocabulary)
    assert images.lexical.nnz
    assert images.patches is not None
    assert set(images.patches.tolist()) <= set(range(GRID**2))
    with torch.no_grad():
        logits, place = model.image_logits(normalised(model))
    expected = model.sparsify(lexical_vector(logits))
    np.testing.assert_allclose(images.lexical.toarray(), expected.toarray(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(images.lexical.toarray(), axis=1), 1, rtol=1e-5)
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


def encodings(model: TorchLexVLA) -> list[np.ndarray]:
    images, texts = model.encode_image(PICTURES), model.encode_text(["a red dog", "two hats"])
    found = [images.lexical.toarray(), images.patches, images.dense, images.codes.toarray()]
    return [*found, texts.lexical.toarray(), texts.dense]


def assert_same_model(one: TorchLexVLA, other: TorchLexVLA) -> None:
    """A model that is loaded has another kernel for attention over text."""
    pairs = list(zip(encodings(one), encodings(other), strict=True))
    for mine, yours in pairs[:4]:
        np.testing.assert_array_equal(mine, yours)
    for mine, yours in pairs[4:]:
        np.testing.assert_allclose(mine, yours, atol=1e-5)


def test_saved_and_loaded_bit_by_bit(model: TorchLexVLA, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = TorchLexVLA.from_pretrained(tmp_path)
    assert loaded.config.vision_model is None
    assert (tmp_path / "vision_model" / "model.safetensors").is_file()
    own, found = model.state_dict(), loaded.state_dict()
    assert own.keys() == found.keys()
    for name, weight in own.items():
        assert torch.equal(weight, found[name]), name
    assert_same_model(loaded, model)
    memory = loaded.image_tower.memory
    assert memory is not None
    assert not any(weight.requires_grad for weight in memory.parameters())


def test_saved_in_half_precision(classified: Path, tmp_path: Path) -> None:
    model = memory_model(classified).half()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name in ("image_tower.memory.item_keys", "image_codebook.values"):
        assert stored[name].dtype == torch.float16
    loaded = TorchLexVLA.from_pretrained(tmp_path)
    assert_same_model(loaded, model.float())
    low = TorchLexVLA.from_pretrained(tmp_path, dtype="bfloat16")
    assert low.encode_image(PICTURES).lexical.shape == (3, len(low.vocabulary))


def test_values_that_float16_rounds_to_0_do_not_change_the_name(
    classified: Path, tmp_path: Path
) -> None:
    model = memory_model(classified)
    with torch.no_grad():
        model.image_codebook[0, :2] = torch.tensor([1e-9, 2.0])
    model.save_pretrained(tmp_path)
    name = model.name
    TorchLexVLA.from_pretrained(tmp_path, dtype="float16").save_pretrained(tmp_path)
    assert TorchLexVLA.from_pretrained(tmp_path).name == name


# Its image codebook in a file


def test_an_image_codebook_is_stored_without_its_zeros(model: TorchLexVLA, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    parts = {name: stored[f"image_codebook.{name}"] for name in ("counts", "columns", "values")}
    assert {name for name in stored if name.startswith("image_codebook")} == {
        f"image_codebook.{name}" for name in parts
    }
    rows = model.image_codebook.detach()
    assert parts["counts"].tolist() == (rows != 0).sum(1).tolist()
    assert parts["columns"].tolist() == rows.nonzero()[:, 1].tolist()
    assert torch.equal(parts["values"], rows[rows != 0])
    assert [parts[name].dtype for name in ("counts", "columns")] == [torch.int32] * 2


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=7),
        elements=st.just(0) | st.floats(-(2.0**14), 2.0**14, width=32),
    )
)
def test_a_matrix_comes_back_bit_by_bit(rows: np.ndarray) -> None:
    matrix = torch.from_numpy(rows)
    parts = _sparse_parts(matrix)
    assert not (parts["image_codebook.values"] == 0).any()
    more = {"other": torch.ones(1)}
    found = _dense(parts | more, torch.empty(matrix.shape))
    assert torch.equal(found, matrix)
    short = _sparse_parts(matrix.half())
    assert torch.equal(_dense(short, matrix), matrix.half())
    assert not short  # all of them were taken


def test_an_empty_image_codebook_comes_back(classified: Path, tmp_path: Path) -> None:
    model = memory_model(classified)
    with torch.no_grad():
        model.image_codebook.zero_()
        model.image_codebook[2, 5] = 3
    for number in (1, 0):
        model.save_pretrained(tmp_path)
        loaded = TorchLexVLA.from_pretrained(tmp_path)
        assert torch.equal(loaded.image_codebook, model.image_codebook)
        assert (loaded.image_codebook != 0).sum() == number
        with torch.no_grad():
            model.image_codebook.zero_()


Weights = dict[str, Tensor]


def put(name: str, place: int, value: float) -> Callable[[Weights], object]:
    def change(weights: Weights) -> None:
        weights[f"image_codebook.{name}"][place] = value

    return change


def cut(name: str) -> Callable[[Weights], object]:
    return lambda weights: weights.update({name: weights[name][:-1].clone()})


def swap(weights: Weights) -> None:
    """Let a row end one place before its first, and the next one take that up."""
    counts = weights["image_codebook.counts"]
    counts[1] += counts[0] + 1
    counts[0] = -1


def add_empty_row(weights: Weights) -> None:
    name = "image_codebook.counts"
    weights[name] = torch.cat([weights[name], weights[name].new_zeros(1)])


def raise_first(weights: Weights) -> None:
    weights["image_codebook.counts"][0] += 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(
            (lambda w, name=name: w.pop(f"image_codebook.{name}"), "parts are missing")
            for name in ("counts", "columns", "values")
        ),
        (cut("image_codebook.counts"), "not of one length"),
        (cut("image_codebook.columns"), "not of one length"),
        (cut("image_codebook.values"), "not of one length"),
        (raise_first, "not of one length"),
        (add_empty_row, "not of one length"),
        (swap, "not of one length"),
        (put("columns", 0, len(ITEMS) + CLASSES + 1), "a column is not below 11"),
        (put("columns", 3, -1), "a column is not below 11"),
        (put("values", 4, math.nan), "holds values that are not finite"),
        (
            lambda w: w.update({k: w[k][None] for k in list(w) if k.endswith(".counts")}),
            "image_codebook",
        ),
        (
            lambda w: w.update({k: w[k].float() for k in list(w) if k.endswith(".counts")}),
            "image_codebook",
        ),
        (
            lambda w: w.update({k: w[k][:, None] for k in list(w) if k.endswith(".values")}),
            "image_codebook",
        ),
        (
            lambda w: w.update({k: w[k][0] for k in list(w) if k.endswith(".columns")}),
            "image_codebook",
        ),
    ],
)
def test_damaged_parts_of_an_image_codebook_are_named(
    model: TorchLexVLA, tmp_path: Path, change: Callable[[Weights], object], words: str
) -> None:
    model.save_pretrained(tmp_path)
    edit_weights(tmp_path, change)
    with pytest.raises(ModelError) as caught:
        TorchLexVLA.from_pretrained(tmp_path)
    assert str(tmp_path / "model.safetensors") in str(caught.value)
    assert "image_codebook" in str(caught.value)
    assert words in str(caught.value)


def test_an_image_codebook_in_one_piece_is_not_that_of_a_memory(
    model: TorchLexVLA, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)

    def join(weights: Weights) -> None:
        for name in ("counts", "columns", "values"):
            weights.pop(f"image_codebook.{name}")
        weights["image_codebook"] = model.image_codebook.detach().clone()

    edit_weights(tmp_path, join)
    with pytest.raises(ModelError, match=r"model\.safetensors: image_codebook: parts are missing"):
        TorchLexVLA.from_pretrained(tmp_path)


def test_parts_are_not_for_a_model_with_an_adapter(classified: Path, tmp_path: Path) -> None:
    model = memory_model(classified, concept_items=0)
    model.save_pretrained(tmp_path)
    assert "image_codebook" in load_file(tmp_path / "model.safetensors")
    edit_weights(tmp_path, lambda w: w.update(_sparse_parts(w.pop("image_codebook"))))
    with pytest.raises(ModelError, match=r"weights missing for .* image_codebook"):
        TorchLexVLA.from_pretrained(tmp_path)


# The words of patches


def eighths(*shape: int, seed: int) -> Tensor:
    """Return numbers whose products and their sums are exact in 32 bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-32, 33, shape, generator=generator) / 8


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 9), st.floats(0, 1))
def test_concepts_that_no_patch_shows_say_nothing(
    model: TorchLexVLA, seed: int, images: int, patches: int, share: float
) -> None:
    """With them and without them, logits and places are equal to the bit."""
    words, width = model.image_codebook.shape
    states = with_level(eighths(images, patches, width - 1, seed=seed).abs())
    hidden = torch.from_numpy(np.random.default_rng(seed).random(width - 1) < share)
    states[..., :-1][..., hidden] = 0
    rows = eighths(words, width, seed=seed + 1)
    with replaced(model, rows):
        logits, place = model.words_of_patches(states)
    expected, places = max_over_patches(states, rows, model.config.vocabulary_chunk)
    assert torch.equal(logits, expected)
    assert torch.equal(place, places)
    assert torch.equal(logits, (states @ rows.T).amax(1))


@contextmanager
def replaced(model: TorchLexVLA, rows: Tensor) -> Iterator[None]:
    kept = model.image_codebook.data
    model.image_codebook.data = rows
    try:
        with torch.no_grad():
            yield
    finally:
        model.image_codebook.data = kept


def test_only_shown_concepts_are_multiplied(
    model: TorchLexVLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def spy(states: Tensor, rows: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        given.append((states, rows))
        return max_over_patches(states, rows, chunk)

    monkeypatch.setattr("lexvla.torch_model.max_over_patches", spy)
    width = model.config.lexical_width
    states = torch.zeros(2, 3, width)
    states[..., -1] = 1
    states[0, 2, 4] = states[1, 0, 1] = 0.5  # each is shown in one image alone
    with torch.no_grad():
        model.words_of_patches(states)
    found, rows = given[0]
    assert torch.equal(found, states[..., [1, 4, width - 1]])
    assert torch.equal(rows, model.image_codebook[:, [1, 4, width - 1]])


def test_a_state_that_is_no_number_stays_one(model: TorchLexVLA) -> None:
    states = torch.zeros(1, 2, model.config.lexical_width)
    states[0, 1, 3] = math.nan
    with torch.no_grad():
        assert model.words_of_patches(states)[0].isnan().all()


@torch.no_grad()
def test_a_dense_vector_is_of_what_the_best_patches_show(model: TorchLexVLA) -> None:
    states = model.patch_states(normalised(model))
    pooled = model.pooled(states)
    assert torch.equal(pooled, states.amax(1))
    cells = model.image_tower.cells(normalised(model))
    shares = model.image_tower.memory.shares(model.image_tower.memory.whole(cells))
    torch.testing.assert_close(pooled, with_level(shares))
    assert model.image_dense_head is not None
    expected = model.image_dense_head(pooled).numpy()
    np.testing.assert_allclose(model.encode_image(PICTURES).dense, expected, atol=1e-6)
    image, _ = model(normalised(model), model.prompt_ids(["hat"]), dense=True, image_words=False)
    np.testing.assert_allclose(image.dense.numpy(), expected, atol=1e-6)
    # Beside an adapter it is the mean.
    plain = tiny_model()
    states = torch.rand(2, 9, 16)
    assert torch.equal(plain.pooled(states), states.mean(1))


def test_without_a_memory_all_dimensions_count(classified: Path) -> None:
    plain = memory_model(classified, concept_items=0)
    states = torch.zeros(1, 2, 16)
    with torch.no_grad():
        plain.image_codebook[4, 7] = math.nan
        logits = plain.words_of_patches(states)[0]
    assert logits[0].isnan().nonzero().tolist() == [[4]]


@pytest.mark.parametrize("limit", [None, 1, 2, 5])
def test_a_model_sparsifies_by_its_own_rule(
    model: TorchLexVLA, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    vectors = lexical_vector(torch.randn(4, 12, generator=torch.Generator().manual_seed(0)))
    for rule, most in (("mean", None), ("top_k", 3), ("threshold", 2)):
        monkeypatch.setattr(model.config, "sparsification", rule)
        monkeypatch.setattr(model.config, "kept_words", 4)
        monkeypatch.setattr(model.config, "threshold", 0.25)
        monkeypatch.setattr(model.config, "max_active_dims", most)
        found = model.sparsify(vectors, limit)
        least = min((each for each in (limit, most) if each is not None), default=None)
        expected = sparsify(vectors, rule, 4, 0.25, least)
        np.testing.assert_array_equal(found.toarray(), expected.toarray())
        assert least is None or np.diff(found.indptr).max() <= least


# Words that are known without being in the vocabulary


def test_a_known_word_need_not_be_in_the_vocabulary(classified: Path, tmp_path: Path) -> None:
    others = ["a zebra’s savanna", "the zebra", "dog"]
    model = memory_model(classified, others=others)
    known = {model.tokenizer.convert_ids_to_tokens(i) for i in range(*model.config.known_tokens)}
    assert known == {"▁zebra", "▁savanna"}
    assert model.vocabulary.find("zebra") is None
    model.save_pretrained(tmp_path)
    for each in (model, TorchLexVLA.from_pretrained(tmp_path)):
        rows = each.encode_text(["zebra", "Savanna!", "red zebra", "dog", "the", "xqv", "", "!"])
        counts = np.diff(rows.lexical.indptr)
        assert (counts[:4] > 0).all()
        assert not counts[4:].any()


def test_without_other_texts_no_more_words_are_known(model: TorchLexVLA) -> None:
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

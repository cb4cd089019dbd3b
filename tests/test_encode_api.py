"""Words, regions, patches, and what is made of encodings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lexvla.encoding import Encoding
from lexvla.errors import InputError, ModelError
from lexvla.lexical_head import elu1p, lexical_vector
from lexvla.preprocessing import preprocess
from lexvla.text_tower import PrefixCache, TextTower
from lexvla.torch_model import TorchLexVLA
from model_fakes import GRID, picture, tiny_model

PICTURES = [picture(1), picture(2)]
TEXTS = ["a red dog", "two blue birds, flying over the horse", "hat", "the cat's green hat"]


@pytest.fixture(scope="module")
def model() -> TorchLexVLA:
    return tiny_model()


def rule(vectors: torch.Tensor) -> np.ndarray:
    """Keep what is above the root mean square, and bring it to unit length."""
    kept = vectors.numpy()
    kept = np.where(kept > kept.shape[-1] ** -0.5, kept, 0)
    return kept / np.linalg.norm(kept, axis=-1, keepdims=True)


@torch.no_grad()
def test_a_word_is_its_row_of_the_text_codebook(model: TorchLexVLA) -> None:
    codebook = model.text_codebook()
    dog, red = model.vocabulary.find("dog"), model.vocabulary.find("red")
    encoding = model.encode_words(["dog", "red dog", "zzz", "DOG"])
    z = torch.stack([codebook[dog], (codebook[red] + codebook[dog]) / 2])
    np.testing.assert_allclose(
        encoding.lexical.toarray()[:2], rule(lexical_vector(z @ codebook.T)), atol=1e-6
    )
    assert encoding.lexical.toarray()[2].any() == False  # noqa: E712 - numpy's own bool
    np.testing.assert_array_equal(encoding.lexical.toarray()[3], encoding.lexical.toarray()[0])
    assert encoding.patches is None
    assert encoding.dense.shape == (4, 6)
    with pytest.raises(InputError, match="not valid Unicode"):
        model.encode_words(["\udcff"])


@torch.no_grad()
def test_a_patch_has_the_vector_of_its_own_state(model: TorchLexVLA) -> None:
    states = model.patch_states(preprocess(PICTURES, 8 * GRID))
    vectors = lexical_vector(states @ model.image_codebook.T).flatten(0, 1)
    encoding = model.encode_patches(iter(PICTURES))
    np.testing.assert_allclose(encoding.lexical.toarray(), rule(vectors), atol=1e-6)
    for row in range(2 * GRID * GRID):
        assert set(encoding[row].patches.tolist()) <= {row % GRID**2}
    dense = model.image_dense_head(states).flatten(0, 1)
    np.testing.assert_allclose(encoding.dense, dense.numpy(), atol=1e-6)
    alone = model.encode_patches(PICTURES, batch_size=1)
    np.testing.assert_allclose(alone.lexical.toarray(), encoding.lexical.toarray(), atol=1e-6)


@torch.no_grad()
def test_a_region_is_the_maximum_over_its_patches(model: TorchLexVLA) -> None:
    states = model.patch_states(preprocess(PICTURES, 8 * GRID))
    mask = np.zeros((GRID, GRID), bool)
    mask[0, 2] = mask[2, 1] = True
    encoding = model.encode_region(PICTURES, [(0, 0, 40, 10), mask])
    for row, patches in enumerate([[0, 1, 2], [2, 7]]):
        best = (states[row, patches] @ model.image_codebook.T).max(dim=0)
        vector = rule(lexical_vector(best.values))
        np.testing.assert_allclose(encoding[row].lexical.toarray()[0], vector, atol=1e-6)
        expected = np.array(patches)[best.indices.numpy()[vector > 0]]
        assert encoding[row].patches.tolist() == expected.tolist()
        dense = model.image_dense_head(states[row, patches].mean(0))
        np.testing.assert_allclose(encoding.dense[row], dense.numpy(), atol=1e-6)


def test_the_whole_image_is_a_region_too(model: TorchLexVLA) -> None:
    whole = model.encode_image(PICTURES)
    boxes = [(0, 0, *image.size) for image in PICTURES]
    region = model.encode_region(PICTURES, boxes, batch_size=1)
    np.testing.assert_allclose(region.lexical.toarray(), whole.lexical.toarray(), atol=1e-6)
    np.testing.assert_array_equal(region.patches, whole.patches)


def test_regions_that_are_refused(model: TorchLexVLA) -> None:
    with pytest.raises(InputError, match="must lie within the image of 40 x 30"):
        model.encode_region(PICTURES[:1], [(0, 0, 41, 3)])
    with pytest.raises(ValueError, match="2 images with 1 regions"):
        model.encode_region(PICTURES, [(0, 0, 4, 3)])


@torch.no_grad()
def test_every_leg_of_texts_and_images(model: TorchLexVLA) -> None:
    texts, images = model.encode_text(TEXTS), model.encode_image(PICTURES)
    states = model.text_states(TEXTS)
    np.testing.assert_allclose(texts.dense, model.text_dense_head(states).numpy(), atol=1e-5)
    patches = model.patch_states(preprocess(PICTURES, 8 * GRID))
    dense = model.image_dense_head(patches.mean(1))
    np.testing.assert_allclose(images.dense, dense.numpy(), atol=1e-6)
    for encoding in (texts, images):
        assert encoding.codes.shape == (len(encoding), 4)
        assert np.diff(encoding.codes.indptr).tolist() == [2] * len(encoding)
        probabilities = model.codebook(torch.from_numpy(encoding.dense)).numpy()
        best = -np.sort(-probabilities, axis=1)[:, :2].sum(axis=1)
        np.testing.assert_allclose(encoding.codes.sum(axis=1), best, rtol=1e-5)


def test_a_model_without_dense_head_or_codes_says_so() -> None:
    plain = tiny_model(dense_width=0, codebook_size=0)
    assert plain.encode_text(TEXTS).dense is plain.encode_text(TEXTS).codes is None
    dense = tiny_model(codebook_size=0).encode_image(PICTURES)
    assert dense.codes is None
    assert dense.dense.shape == (2, 6)


def test_intersection_shares_the_similarity_out(model: TorchLexVLA) -> None:
    texts, images = model.encode_text(TEXTS[:2]), model.encode_image(PICTURES)
    pairs = model.intersection(texts, images)
    expected = texts.lexical.toarray() * images.lexical.toarray()
    np.testing.assert_allclose(pairs.toarray(), expected)
    assert pairs.nnz == (expected > 0).sum()
    np.testing.assert_allclose(
        pairs.sum(axis=1), model.similarity(texts, images).diagonal(), rtol=1e-5
    )
    one = model.intersection(texts[0], images)
    np.testing.assert_allclose(one.sum(axis=1), model.similarity(texts, images)[0], rtol=1e-5)
    with pytest.raises(ValueError, match="2 queries do not match 1 items"):
        model.intersection(texts, images[0])


def test_sparsity(model: TorchLexVLA) -> None:
    encoding = model.encode_text(["a red dog", "?!"], max_active_dims=3)
    size = len(model.vocabulary)
    assert model.sparsity(encoding) == {"active_dims": 1.5, "sparsity_ratio": 1 - 1.5 / size}


def test_several_heat_maps_by_one_pass(model: TorchLexVLA, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    patch_states = TorchLexVLA.patch_states
    monkeypatch.setattr(
        TorchLexVLA, "patch_states", lambda self, x: passes.append(1) or patch_states(self, x)
    )
    maps = model.heatmaps(PICTURES[0], ["dog", "red"])
    assert maps.shape == (2, GRID, GRID)
    assert len(passes) == 1
    with torch.no_grad():
        states = model.patch_states(preprocess(PICTURES[:1], 8 * GRID))[0]
        row = model.image_codebook[model.vocabulary.find("red")]
        expected = elu1p(states @ row).view(GRID, GRID).numpy()
    np.testing.assert_allclose(maps[1], expected, rtol=1e-5)
    column = model.vocabulary.find("red")
    np.testing.assert_allclose(model.heatmaps(PICTURES[0], [column])[0], maps[1], rtol=1e-5)
    with pytest.raises(KeyError, match="zzz"):
        model.heatmaps(PICTURES[0], ["dog", "zzz"])


def test_items_may_come_from_an_iterator(model: TorchLexVLA) -> None:
    texts = [f"red dog {i}" for i in range(70)]
    whole = model.encode_text(texts, batch_size=2)  # over more than one window of sorted batches
    streamed = model.encode_text(iter(texts), batch_size=2)
    np.testing.assert_array_equal(streamed.lexical.toarray(), whole.lexical.toarray())
    alone = Encoding.concat([model.encode_text([text]) for text in texts])
    np.testing.assert_allclose(alone.lexical.toarray(), whole.lexical.toarray(), atol=1e-6)
    images = model.encode_image(iter(PICTURES), batch_size=1)
    np.testing.assert_array_equal(
        images.lexical.toarray(), model.encode_image(PICTURES, batch_size=1).lexical.toarray()
    )


def test_the_prompt_is_run_once_for_all_batches(
    model: TorchLexVLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[int] = []
    backbone = model.text_tower.language_model.get_decoder()
    forward = type(backbone).forward

    def watched(self: torch.nn.Module, **inputs: torch.Tensor) -> object:
        tokens.append(inputs["input_ids"].numel())
        return forward(self, **inputs)

    monkeypatch.setattr(type(backbone), "forward", watched)
    model.encode_text(["red dog", "red hat", "blue dog", "blue hat"], batch_size=1)
    ids = [len(model.tokenizer(model.config.prompt.replace("{text}", "red dog"))["input_ids"])]
    assert len(tokens) == 5
    assert max(tokens) == tokens[0]
    assert sum(tokens) < 2 * ids[0]


@torch.no_grad()
def test_a_cache_of_a_longer_beginning_is_cut(model: TorchLexVLA) -> None:
    cache = PrefixCache()
    for texts in (["red dog", "red hat"], ["red dog", "blue hat"], ["hat"], ["red dog", "red hat"]):
        cached = model.text_states(texts, cache)
        torch.testing.assert_close(cached, model.text_states(texts), atol=1e-5, rtol=1e-5)
    other = cache.common([[7, 8, 9], [7, 8, 9]])
    assert other in (0, 1)


def test_training_keeps_no_cache(model: TorchLexVLA) -> None:
    seen = []
    forward = TextTower.forward

    def watched(self: TextTower, ids: list[list[int]], cache: PrefixCache | None = None) -> object:
        seen.append(cache)
        return forward(self, ids, cache)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextTower, "forward", watched)
        model.text_logits(["red dog"]).sum().backward()
    assert seen == [None]
    model.zero_grad()


def test_out_of_memory_names_the_knob(model: TorchLexVLA, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: TorchLexVLA, pixels: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TorchLexVLA, "patch_states", full)
    with pytest.raises(ModelError, match="smaller batch_size"):
        model.encode_image(PICTURES)


@pytest.mark.slow
def test_memory_grows_with_the_kept_words_alone() -> None:
    """Encode 40,000 texts over 6,000 words, which as dense rows would take 960 MB."""
    code = """
import resource, sys
sys.path.insert(0, "tests")
from lexvla.config import LexVLAConfig
from lexvla.torch_model import TorchLexVLA
from lexvla.training.tokenizer import train_tokenizer
from lexvla.vocabulary import Vocabulary
from transformers import Dinov2Config, LlamaConfig
words = [a + b + c + d for a in "bdfgklmnpr" for b in "aeiou" for c in "bdfgklmnprst" for d in
         ("a", "e", "i", "o", "u", "an", "en", "in", "on", "un")]
pieces = train_tokenizer(words, 60)
vocabulary = Vocabulary.from_tokenizer(pieces)
assert len(vocabulary) >= 6000
text = LlamaConfig(vocab_size=len(pieces), hidden_size=8, intermediate_size=8,
    num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=64)
vision = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16,
    patch_size=8, use_mask_token=False)
model = TorchLexVLA(LexVLAConfig(text, vision, prompt="{text}", adapter_heads=1, adapter_width=8,
    dense_width=0, codebook_size=0), vocabulary, pieces)
def encode(count):
    return model.encode_text((words[i % 6000] for i in range(count)), 256, max_active_dims=8)
encode(2_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
encoding = encode(40_000)
assert encoding.lexical.shape[0] == 40_000 and encoding.lexical.nnz == 320_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    # The rows themselves take 2.6 MB; the rest is what the allocator keeps.
    assert int(done.stdout) < 60


def test_an_image_that_is_not_yet_decoded_may_be_given_often(
    model: TorchLexVLA, tmp_path: Path
) -> None:
    picture(1, (400, 300)).save(tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as lazy:
        often = model.encode_image([lazy] * 40, batch_size=7)
    once = model.encode_image([tmp_path / "one.png"])
    for row in often:
        np.testing.assert_allclose(row.lexical.toarray(), once.lexical.toarray(), atol=1e-6)


def test_the_first_bad_image_ends_the_batch_with_its_name(
    model: TorchLexVLA, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    taken: list[int] = []

    def sources() -> Iterator[object]:
        for number in range(100):
            taken.append(number)
            yield tmp_path / "bad.png" if number == 5 else picture(number)

    with pytest.raises(InputError, match=r"bad\.png"):
        model.encode_image(sources(), batch_size=4)
    assert len(taken) <= 12  # the batch of the bad one, and the one prepared ahead

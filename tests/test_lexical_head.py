from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lexvla.lexical_head import elu1p, lexical_vector, max_over_patches, sparsify


def reference(patches: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    best = (patches @ codebook.T).max(dim=1)
    return best.values, best.indices


def random_parts(
    batch: int, count: int, width: int, words: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch + 10 * count + 100 * words)
    patches = torch.randn(batch, count, width, generator=generator, dtype=dtype)
    codebook = torch.randn(words, width, generator=generator, dtype=dtype)
    return patches.requires_grad_(), codebook.requires_grad_()


def kept(matrix: list[list[float]], rule: str, **settings: float) -> list[list[float]]:
    settings = {"kept_words": 2, "threshold": 0.0, **settings}
    return sparsify(torch.tensor(matrix), rule, **settings).toarray().tolist()


def test_elu1p() -> None:
    logits = torch.tensor([-1000.0, -2.0, -0.5, 0.0, 0.5, 3.0, 1000.0], dtype=torch.float64)
    expected = [0.0, math.exp(-2), math.exp(-0.5), 1.0, 1.5, 4.0, 1001.0]
    assert elu1p(logits).tolist() == pytest.approx(expected, abs=1e-12)


def test_elu1p_keeps_the_order_so_the_maximum_may_come_first() -> None:
    logits = torch.linspace(-8, 8, 201)
    assert (elu1p(logits).diff() > 0).all()


def test_lexical_vector_has_unit_length_in_float32() -> None:
    logits = torch.tensor([[0.0, 0.0, 1.0], [-5.0, 2.0, -300.0]], dtype=torch.bfloat16)
    vectors = lexical_vector(logits)
    assert vectors.dtype == torch.float32
    assert vectors[0].tolist() == pytest.approx([6**-0.5, 6**-0.5, 2 * 6**-0.5])
    assert (vectors >= 0).all()
    assert vectors.norm(dim=1).tolist() == pytest.approx([1, 1])


def test_max_over_patches_by_hand() -> None:
    patches = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]]])
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-3.0, -3.0], [1.0, 1.0]])
    logits, place = max_over_patches(patches, codebook, 3)
    assert logits.tolist() == [[1.0, 2.0, 6.0, 2.0]]
    assert place.tolist() == [[0, 1, 2, 1]]
    assert place.dtype == torch.int16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [1, 3, 4, 12, 100])  # with and without a remainder of 12
def test_max_over_patches_is_the_plain_product(chunk: int, dtype: torch.dtype) -> None:
    patches, codebook = random_parts(2, 5, 4, 12, dtype)
    logits, place = max_over_patches(patches, codebook, chunk)
    expected, places = reference(patches, codebook)
    torch.testing.assert_close(logits, expected)
    assert place.tolist() == places.tolist()
    weights = torch.randn(2, 12, dtype=dtype, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((logits * weights).sum(), (patches, codebook))
    wanted = torch.autograd.grad((expected * weights).sum(), (patches, codebook))
    torch.testing.assert_close(gradients, wanted)


def test_gradcheck() -> None:
    patches, codebook = random_parts(2, 3, 4, 7)
    assert torch.autograd.gradcheck(
        lambda p, c: max_over_patches(p, c, 3)[0], (patches, codebook), eps=1e-6
    )


def test_words_that_are_not_used_get_no_gradient() -> None:
    patches, codebook = random_parts(1, 4, 3, 6)
    logits, place = max_over_patches(patches, codebook, 4)
    logits[0, 2].backward()
    used = torch.zeros(4, dtype=torch.bool)
    used[int(place[0, 2])] = True
    assert codebook.grad is not None
    assert patches.grad is not None
    assert codebook.grad.any(dim=1).tolist() == [False, False, True, False, False, False]
    assert patches.grad[0].any(dim=1).tolist() == used.tolist()


@given(
    st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)
)
def test_max_over_patches_for_any_shape(
    batch: int, count: int, width: int, words: int, chunk: int
) -> None:
    patches, codebook = random_parts(batch, count, width, words)
    logits, place = max_over_patches(patches, codebook, chunk)
    expected, _ = reference(patches, codebook)
    torch.testing.assert_close(logits, expected)
    # The place is one where the maximum is, whichever of several.
    dense = patches @ codebook.T
    torch.testing.assert_close(dense.gather(1, place.long()[:, None])[:, 0], expected)
    logits.sum().backward()
    assert patches.grad is not None
    assert patches.grad.shape == patches.shape


def test_autocast_computes_in_16_bits_and_gives_gradients_of_the_parameters_kind() -> None:
    patches, codebook = random_parts(1, 3, 4, 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = max_over_patches(patches, codebook, 2)
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert codebook.grad is not None
    assert codebook.grad.dtype == torch.float32


def test_sparsify_keeps_what_is_above_the_root_mean_square() -> None:
    # 1/sqrt(4) = 0.5: an entry on the line goes, as the rule says "above".
    assert kept([[0.5, 0.5, 0.5, 0.5], [0.75, 0.5, 0.0, 0.25]], "mean") == [
        [0, 0, 0, 0],
        [0.75, 0, 0, 0],
    ]


def test_sparsify_by_threshold() -> None:
    rows = [[0.25, 0.5, 0.0], [0.125, 0.0, 0.75]]
    assert kept(rows, "threshold", threshold=0.25) == [[0, 0.5, 0], [0, 0, 0.75]]
    assert kept(rows, "threshold", threshold=-1.0) == rows


def test_sparsify_keeps_the_largest() -> None:
    rows = [[0.5, 0.25, 0.75], [0.0, 0.5, 0.0]]
    assert kept(rows, "top_k") == [[0.5, 0, 0.75], [0, 0.5, 0]]
    assert kept(rows, "top_k", kept_words=9) == rows


@pytest.mark.parametrize("rule", ["mean", "top_k", "threshold"])
def test_max_active_dims_is_a_limit_under_every_rule(rule: str) -> None:
    rows = [[0.75, 0.625, 0.8125, 0.0], [0.0, 0.0, 0.0, 1.0]]
    limited = {"kept_words": 3, "max_active_dims": 1}
    assert kept(rows, rule, **limited) == [[0, 0, 0.8125, 0], [0, 0, 0, 1]]
    limited["max_active_dims"] = 0
    assert kept(rows, rule, **limited) == [[0, 0, 0, 0], [0, 0, 0, 0]]
    limited["max_active_dims"] = 4
    assert kept(rows, rule, **limited) == [[0.75, 0.625, 0.8125, 0], [0, 0, 0, 1]]


def test_equal_weights_at_the_limit_are_cut_to_the_number_asked_for() -> None:
    rows = torch.full((3, 8), 0.5)
    matrix = sparsify(rows, "threshold", 0, 0.1, max_active_dims=3)
    assert np.diff(matrix.indptr).tolist() == [3, 3, 3]


def test_sparse_rows_are_canonical_float32() -> None:
    matrix = sparsify(torch.rand(5, 30, dtype=torch.float64), "top_k", 7, 0.0)
    assert matrix.dtype == np.float32
    assert matrix.has_canonical_format
    assert matrix.shape == (5, 30)
    assert np.diff(matrix.indptr).tolist() == [7] * 5


def test_no_rows() -> None:
    assert sparsify(torch.zeros(0, 4), "mean", 0, 0.0).shape == (0, 4)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="'best': use mean, top_k or threshold"):
        kept([[1.0]], "best")

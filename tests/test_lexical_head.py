from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lexvla import lexical_head
from lexvla.lexical_head import (
    elu1p,
    lexical_vector,
    max_over_patches,
    max_over_patches_reference,
    sparsify,
)


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


def close(row: list[float]) -> object:
    return pytest.approx(row, abs=1e-7)


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
    expected, places = max_over_patches_reference(patches, codebook)
    torch.testing.assert_close(logits, expected)
    assert place.tolist() == places.tolist()
    weights = torch.randn(2, 12, dtype=dtype, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((logits * weights).sum(), (patches, codebook))
    wanted = torch.autograd.grad((expected * weights).sum(), (patches, codebook))
    torch.testing.assert_close(gradients, wanted)


@pytest.mark.parametrize("frozen", [(), ("patches",), ("codebook",)])
def test_gradcheck(frozen: tuple[str, ...]) -> None:
    patches, codebook = random_parts(2, 3, 4, 7)
    patches.requires_grad_("patches" not in frozen)
    codebook.requires_grad_("codebook" not in frozen)
    assert torch.autograd.gradcheck(
        lambda p, c: max_over_patches(p, c, 3)[0], (patches, codebook), eps=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_lose_one_rounding(dtype: torch.dtype) -> None:
    # Sums are of 32 bits and rounded once, by half a unit of the last place at most; of float16
    # numbers near 0 that place is fixed.
    tolerance = {"rtol": torch.finfo(dtype).eps / 2 * 1.01, "atol": 1e-5}
    patches, codebook = random_parts(3, 40, 24, 50, torch.float32)
    small = [part.detach().to(dtype).requires_grad_() for part in (patches, codebook)]
    logits, place = max_over_patches(*small, chunk=16)
    large = [part.detach().double().requires_grad_() for part in small]
    dense = large[0] @ large[1].T
    torch.testing.assert_close(logits.double(), dense.amax(1), **tolerance)
    weights = torch.randn(3, 50, generator=torch.Generator().manual_seed(2)).to(dtype)
    gradients = torch.autograd.grad(logits, small, weights)
    # At the same places: where two patches are a rounding apart either is right.
    chosen = dense.gather(1, place.long()[:, None])[:, 0]
    wanted = torch.autograd.grad(chosen, large, weights.double())
    for gradient, exact in zip(gradients, wanted, strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), exact, **tolerance)


@pytest.mark.parametrize("tile", [1, 10, 2**20])  # words an item; the result is the same
def test_few_items_at_a_time_give_what_all_give(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexical_head, "_TILE", tile)
    patches, codebook = random_parts(5, 4, 3, 9)
    logits, place = max_over_patches(patches, codebook, 2)
    expected, places = max_over_patches_reference(patches, codebook)
    torch.testing.assert_close(logits, expected)
    assert torch.equal(place, places)


def test_a_part_that_is_frozen_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, codebook = random_parts(2, 3, 4, 7)
    expected, _ = max_over_patches_reference(patches, codebook)
    wanted = torch.autograd.grad(expected.sum(), (patches, codebook))
    for frozen in ("codebook", "patches"):
        with monkeypatch.context() as patch:
            patch.setattr(lexical_head, f"_to_{frozen}", None)  # not even called
            learning = patches if frozen == "codebook" else codebook
            parts = {"patches": patches, "codebook": codebook}
            parts[frozen] = parts[frozen].detach()
            logits, _ = max_over_patches(**parts, chunk=3)
            (gradient,) = torch.autograd.grad(logits.sum(), learning)
            torch.testing.assert_close(gradient, wanted[frozen == "patches"])


def test_nothing_as_large_as_all_logits_is_ever_held() -> None:
    batch, count, width, words = 8, 64, 16, 2000
    patches, codebook = random_parts(batch, count, width, words, torch.float32)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        max_over_patches(patches, codebook, 100)[0].sum().backward()
    events = profile.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    # The largest is what a sort by place needs: 8 bytes a word and item.
    assert max(sizes) <= max(8 * batch * words, 4 * batch * count * 100)
    assert max(sizes) < 4 * batch * count * words / 10


def test_of_equal_patches_one_is_the_place() -> None:
    patches = torch.tensor([[[1.0], [3.0], [3.0], [-1.0]], [[2.0], [2.0], [2.0], [2.0]]])
    logits, place = max_over_patches(patches, torch.tensor([[1.0], [-1.0], [0.0]]), 2)
    assert logits.tolist() == [[3, 1, 0], [2, -2, 0]]
    assert place[0, 0] in (1, 2)
    assert place[0, 1] == 3
    assert ((place >= 0) & (place < 4)).all()


def test_a_nan_stays_where_it_is() -> None:
    patches = torch.tensor([[[1.0], [math.nan], [math.inf]], [[1.0], [-math.inf], [2.0]]])
    logits, place = max_over_patches(patches, torch.tensor([[1.0], [-1.0]]), 1)
    assert logits[0].isnan().tolist() == [True, True]
    assert place[0].tolist() == [1, 1]
    assert logits[1].tolist() == [2, math.inf]
    assert place[1].tolist() == [2, 1]


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 4, 0)])
def test_no_items_or_no_words(shape: tuple[int, int, int, int]) -> None:
    patches, codebook = random_parts(*shape)
    logits, place = max_over_patches(patches, codebook, 2)
    assert logits.shape == place.shape == (shape[0], shape[3])
    logits.sum().backward()
    assert patches.grad is not None
    assert codebook.grad is not None
    assert not patches.grad.any()
    assert not codebook.grad.any()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="patches have width 4, but the codebook 5"):
        max_over_patches(torch.zeros(1, 2, 4), torch.zeros(3, 5), 2)
    with pytest.raises(ValueError, match="patches of an item must be 1 to 32767, not 32768"):
        max_over_patches(torch.zeros(1, 32768, 1), torch.zeros(3, 1), 2)
    with pytest.raises(ValueError, match="patches of an item must be 1 to 32767, not 0"):
        max_over_patches(torch.zeros(1, 0, 4), torch.zeros(3, 4), 2)
    patches = torch.zeros(1, 32767, 1)
    patches[0, -1] = 1
    assert max_over_patches(patches, torch.ones(3, 1), 2)[1].tolist() == [[32766] * 3]


def test_the_operators_keep_torchs_rules_for_operators() -> None:
    patches, codebook = random_parts(2, 3, 4, 7)
    torch.library.opcheck(lexical_head._forward, (patches, codebook, 3))
    place = max_over_patches(patches, codebook, 3)[1]
    gradient = torch.ones(2, 7, dtype=torch.float64)
    frozen = patches.detach(), codebook.detach()
    torch.library.opcheck(lexical_head._to_codebook, (gradient, frozen[0], place))
    torch.library.opcheck(lexical_head._to_patches, (gradient, frozen[1], place, 3))


def test_compiled_as_one_graph_it_gives_the_same() -> None:
    def loss(patches: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        logits, place = max_over_patches(patches.tanh(), codebook, 3)
        return (elu1p(logits) ** 2).sum(), place

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for batch in (2, 3):  # at the second size the graph becomes one for any size
        parts = random_parts(batch, 3, 4, 7)
        value, place = compiled(*parts)
        expected, places = loss(*parts)
        torch.testing.assert_close(value, expected)
        assert torch.equal(place, places)
        gradients = torch.autograd.grad(value, parts)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, parts))


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
    expected, _ = max_over_patches_reference(patches, codebook)
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
    rows = [[0.5, 0.5, 0.5, 0.5], [0.75, 0.5, 0.0, 0.25], [0.5625, 0.75, 0.0, 0.25]]
    assert kept(rows, "mean") == [[0, 0, 0, 0], [1, 0, 0, 0], close([0.6, 0.8, 0, 0])]


def test_sparsify_by_threshold() -> None:
    rows = [[0.25, 0.5, 0.0], [0.125, 0.0, 0.75], [0.375, 0.125, 0.5]]
    assert kept(rows, "threshold", threshold=0.25) == [
        [0, 1, 0],
        [0, 0, 1],
        close([0.6, 0, 0.8]),
    ]
    assert kept([[0.375, 0.0, 0.5]], "threshold", threshold=-1.0) == [close([0.6, 0, 0.8])]


def test_sparsify_keeps_the_largest() -> None:
    rows = [[0.5625, 0.25, 0.75], [0.0, 0.5, 0.0]]
    assert kept(rows, "top_k") == [close([0.6, 0, 0.8]), [0, 1, 0]]
    length = math.sqrt(0.5625**2 + 0.25**2 + 0.75**2)
    assert kept(rows, "top_k", kept_words=9) == [close([v / length for v in rows[0]]), [0, 1, 0]]


@pytest.mark.parametrize("rule", ["mean", "top_k", "threshold"])
def test_max_active_dims_is_a_limit_under_every_rule(rule: str) -> None:
    rows = [[0.75, 0.625, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    limited = {"kept_words": 3, "max_active_dims": 1}
    assert kept(rows, rule, **limited) == [[0, 0, 1, 0], [0, 0, 0, 1]]
    limited["max_active_dims"] = 2
    assert kept(rows, rule, **limited) == [close([0.6, 0, 0.8, 0]), [0, 0, 0, 1]]
    limited["max_active_dims"] = 0
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        kept(rows, rule, **limited)
    limited["max_active_dims"] = 4
    length = math.sqrt(0.75**2 + 0.625**2 + 1)
    assert kept(rows, rule, **limited) == [close([v / length for v in rows[0]]), [0, 0, 0, 1]]


@given(
    st.integers(0, 10**6),
    st.sampled_from(["mean", "top_k", "threshold"]),
    st.none() | st.integers(1, 6),
)
def test_what_is_kept_has_unit_length(seed: int, rule: str, limit: int | None) -> None:
    """And its words stand to one another as before; those that are left out are lighter."""
    generator = torch.Generator().manual_seed(seed)
    vectors = lexical_vector(4 * torch.randn(5, 12, generator=generator) - 3)
    vectors[2] = 0  # a text without a known word
    found = torch.from_numpy(sparsify(vectors, rule, 4, 0.2, limit).toarray())
    for row, vector in zip(found, vectors, strict=True):
        held = row > 0
        if not held.any():
            assert not row.any()
            continue
        assert row.norm().item() == pytest.approx(1, abs=1e-6)
        torch.testing.assert_close(row[held], vector[held] / vector[held].norm())
        assert vector[~held].amax() <= vector[held].amin()
    assert not found[2].any()


def test_equal_weights_at_the_limit_are_cut_to_the_number_asked_for() -> None:
    rows = torch.full((3, 8), 0.5)
    matrix = sparsify(rows, "threshold", 0, 0.1, max_active_dims=3)
    assert np.diff(matrix.indptr).tolist() == [3, 3, 3]
    np.testing.assert_allclose(matrix.data, 3**-0.5)


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

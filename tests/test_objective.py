from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lexvla.codebook import ipot, sinkhorn
from lexvla.errors import ModelError
from lexvla.losses import (
    HierarchicalProxy,
    codis_loss,
    cross_modal_loss,
    flops_penalty,
    intra_modal_loss,
    local_loss,
    overuse_penalty,
    pool_patches,
)
from lexvla.torch_model import Features
from lexvla.training import objective as module
from lexvla.training.objective import Losses, Objective, Targets, TeacherView, dense
from objective_fakes import (
    BOOK,
    COUNT,
    IMAGE,
    LABELS,
    MASK,
    SEEN,
    SILENT,
    TAU,
    TEXT,
    WIDTH,
    build,
    only,
    terms,
)

# The name of each term, and the function or method of this module's that computes it.
TERMS = {
    "lexical": "symmetric",
    "penalty_image": "overuse_penalty",
    "penalty_text": "overuse_penalty",
    "dense": "symmetric",
    "codis": "codis_loss",
    "tcl_cross": "cross_modal_loss",
    "tcl_intra": "intra_modal_loss",
    "tcl_local": "local_loss",
    "proxy": "proxies",
    "distil": "_distil",
}


def info_nce(similarity: Tensor) -> Tensor:
    own = torch.arange(COUNT)
    logits = similarity / TAU
    return functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)


def codis(solver: Callable[[Tensor], Tensor] = sinkhorn) -> Tensor:
    assert IMAGE.dense is not None
    assert TEXT.dense is not None
    found = codis_loss(
        IMAGE.dense,
        TEXT.dense,
        dense(SEEN.image),
        dense(SEEN.text),
        BOOK,
        TAU,
        SEEN.image_queue,
        SEEN.text_queue,
        solver,
    )
    return sum(found, torch.zeros(()))


def expected(name: str) -> Tensor:
    """Compute a term's loss beside the objective, from methods.md by the losses' functions."""
    i, t, i_seen, t_seen = (dense(each) for each in (IMAGE, TEXT, SEEN.image, SEEN.text))
    image_keys, text_keys = (
        torch.cat(pair) for pair in ((i_seen, SEEN.image_queue), (t_seen, SEEN.text_queue))
    )
    assert SEEN.image.locals is not None
    assert SEEN.text.locals is not None
    if name == "lexical":
        return info_nce(IMAGE.lexical @ TEXT.lexical.T)
    if name == "dense":
        return info_nce(i @ t.T)
    if name == "penalty_image":
        return overuse_penalty(IMAGE.lexical)
    if name == "penalty_text":
        return overuse_penalty(TEXT.lexical)
    if name == "codis":
        return codis()
    if name == "tcl_cross":
        there = cross_modal_loss(i, i_seen, text_keys, TAU, 0.4)
        return (there + cross_modal_loss(t, t_seen, image_keys, TAU, 0.4)) / 2
    if name == "tcl_intra":
        return (intra_modal_loss(i, image_keys, TAU) + intra_modal_loss(t, text_keys, TAU)) / 2
    if name == "tcl_local":
        of_image = local_loss(i, pool_patches(SEEN.image.locals), TAU)
        return (of_image + local_loss(t, SEEN.text.locals, TAU, MASK)) / 2
    if name == "proxy":
        proxies = build(only("proxy")).proxies
        assert proxies is not None
        return proxies.levels[0](torch.cat([i, t]), torch.cat([LABELS, LABELS]))
    legs = [IMAGE.lexical @ TEXT.lexical.T / TAU, i @ t.T / TAU]
    target = (legs[0] + legs[1]) / 2
    total = torch.zeros(())
    for leg in legs:
        total = total - (target.softmax(1) * leg.log_softmax(1)).sum() / COUNT
        total = total - (target.softmax(0) * leg.log_softmax(0)).sum() / COUNT
    return total / 4


@pytest.mark.parametrize("name", TERMS)
def test_a_term_alone_is_its_loss_by_its_weight(name: str) -> None:
    with torch.no_grad():
        parts = terms(build(only(name, 0.3)))
    assert list(parts) == [name]
    torch.testing.assert_close(parts[name], 0.3 * expected(name))


@pytest.mark.parametrize("name", TERMS)
def test_a_term_of_weight_0_is_not_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All others are on, but for the ones that share the function."""

    def fail(*_: Any, **__: Any) -> Tensor:
        raise AssertionError(f"{name} was computed")

    function = TERMS[name]
    weights = {other: float(by != function) for other, by in TERMS.items()}
    objective = build(replace(SILENT, **weights))
    if function == "symmetric":
        monkeypatch.setattr(module.InfoNCE, "symmetric", fail)
    elif function == "proxies":
        monkeypatch.setattr(HierarchicalProxy, "forward", fail)
    elif function == "_distil":
        monkeypatch.setattr(Objective, "_distil", fail)
    else:
        monkeypatch.setattr(module, function, fail)
    parts = terms(objective)
    assert set(parts) == {other for other, by in TERMS.items() if by != function}


def test_the_parts_do_not_depend_on_each_other() -> None:
    weights = {name: 0.1 * (number + 1) for number, name in enumerate(TERMS)}
    with torch.no_grad():
        parts = terms(build(replace(SILENT, **weights)))
    assert set(parts) == set(TERMS)
    for name, weight in weights.items():
        torch.testing.assert_close(parts[name], weight * expected(name))


def test_no_weight_gives_no_part() -> None:
    assert terms(build(SILENT)) == {}


def test_the_default_is_lexvla() -> None:
    """LexVLA eq. 8 with the paper's weights, and no dense vectors in sight."""
    objective = Objective(Losses())
    with torch.no_grad():
        parts = objective(Features(IMAGE.lexical), Features(TEXT.lexical), 5000)
    assert list(parts) == ["lexical", "penalty_image", "penalty_text"]
    torch.testing.assert_close(parts["penalty_image"], 5e-4 * overuse_penalty(IMAGE.lexical))
    torch.testing.assert_close(parts["penalty_text"], 1e-3 * overuse_penalty(TEXT.lexical))
    own = torch.arange(COUNT)
    words = IMAGE.lexical @ TEXT.lexical.T / 0.07
    both = functional.cross_entropy(words, own) + functional.cross_entropy(words.T, own)
    torch.testing.assert_close(parts["lexical"], both)


@pytest.mark.parametrize(
    ("step", "ramp"), [(0, 0.0), (500, 1 / 16), (1000, 1 / 4), (2000, 1.0), (9000, 1.0)]
)
def test_the_penalty_is_ramped_quadratically(step: int, ramp: float) -> None:
    objective = build(only("penalty_text", 2.0, penalty="flops"))
    found = terms(objective, step)["penalty_text"]
    torch.testing.assert_close(found, ramp * 2 * flops_penalty(TEXT.lexical))


def test_a_ramp_of_0_steps_is_over_at_once() -> None:
    parts = terms(build(only("penalty_image", penalty_ramp=0)), 1)
    torch.testing.assert_close(parts["penalty_image"], overuse_penalty(IMAGE.lexical))


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (250, 0.15), (500, 0.3), (501, 0.3)])
def test_the_teachers_share_is_ramped_linearly(step: int, share: float) -> None:
    parts = terms(build(only("tcl_cross", alpha=0.3, alpha_ramp=500)), step)
    i, t, i_seen, t_seen = (dense(each) for each in (IMAGE, TEXT, SEEN.image, SEEN.text))
    one = cross_modal_loss(i, i_seen, torch.cat([t_seen, SEEN.text_queue]), TAU, share)
    other = cross_modal_loss(t, t_seen, torch.cat([i_seen, SEEN.image_queue]), TAU, share)
    torch.testing.assert_close(parts["tcl_cross"], (one + other) / 2)


def test_codis_by_ipot() -> None:
    parts = terms(build(only("codis", assignment="ipot")))
    torch.testing.assert_close(parts["codis"], codis(lambda cosines: ipot(1 - cosines)))


def test_without_codes_codis_is_silent() -> None:
    assert set(terms(build(only("codis", tcl_intra=1.0)), codes=None)) == {"tcl_intra"}


def test_without_labels_proxies_are_silent() -> None:
    assert set(terms(build(only("proxy", dense=1.0)), targets=Targets())) == {"dense"}


def test_without_a_teacher_its_terms_are_silent() -> None:
    losses = only("codis", tcl_cross=1.0, tcl_intra=1.0, tcl_local=1.0, dense=1.0)
    assert set(terms(build(losses), teacher=None)) == {"dense"}


def test_a_teacher_without_dense_vectors_is_refused() -> None:
    blind = replace(SEEN, text=Features(SEEN.text.lexical))
    with pytest.raises(ModelError, match="dense"):
        terms(build(only("tcl_intra")), teacher=blind)


def test_the_loss_reaches_students_codes_and_settings_but_not_the_teacher() -> None:
    students = [x.clone().requires_grad_() for x in (*IMAGE[:2], *TEXT[:2]) if x is not None]
    taught = [
        x.clone().requires_grad_() for x in (*SEEN.image[:3], *SEEN.text[:3]) if x is not None
    ]
    queues = [x.clone().requires_grad_() for x in (SEEN.image_queue, SEEN.text_queue)]
    codes = BOOK.clone().requires_grad_()
    view = TeacherView(Features(*taught[:3]), Features(*taught[3:], MASK), queues[0], queues[1])
    objective = build(replace(SILENT, **dict.fromkeys(TERMS, 1.0)))
    image, text = Features(*students[:2]), Features(*students[2:])
    parts = objective(image, text, 10**6, codes, view, Targets(LABELS))
    torch.stack(list(parts.values())).sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (*students, codes))
    assert all(x.grad is None for x in (*taught, *queues))
    for name, weight in objective.named_parameters():
        if not name.startswith("pairs."):  # of the contrast among images, which is not asked for
            assert weight.grad is not None
            assert weight.grad.abs().sum() > 0


def test_what_distils_is_no_path_for_gradient() -> None:
    """The gradient of cross entropy to a fixed target is the guess less the target."""
    logits = torch.randn(2, COUNT, COUNT, generator=torch.Generator().manual_seed(1))
    words = (logits[0] * TAU).requires_grad_()
    meaning = (logits[1] * TAU).requires_grad_()
    build(only("distil"))._distil(words, meaning).backward()
    mean = logits.mean(0)
    for found, own in ((words.grad, logits[0]), (meaning.grad, logits[1])):
        by_rows = own.softmax(1) - mean.softmax(1)
        by_columns = own.softmax(0) - mean.softmax(0)
        assert found is not None
        torch.testing.assert_close(found, (by_rows + by_columns) / (4 * COUNT * TAU))


def test_legs_that_agree_teach_each_other_nothing() -> None:
    words = torch.rand(COUNT, COUNT, generator=torch.Generator().manual_seed(1)).requires_grad_()
    meaning = words.detach().clone().requires_grad_()
    objective = build(only("distil"))
    objective._distil(words, meaning).backward()
    found = [words.grad, meaning.grad, objective.lexical.log_scale.grad]
    for gradient in found:
        assert gradient is not None
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


def test_temperatures_come_back_into_their_limits() -> None:
    """CLIP's logits are capped at 100; TCL's temperature is within 0.001 and 0.5."""
    objective = Objective(Losses())
    for sign, lexical, teacher in ((1, 0.01, 0.001), (-1, math.exp(20), 0.5)):
        with torch.no_grad():
            for weight in objective.parameters():
                weight.fill_(20.0 * sign)
        objective.clamp()
        assert objective.lexical.temperature.item() == pytest.approx(lexical)
        assert objective.dense.temperature.item() == pytest.approx(lexical)
        assert objective.pairs.temperature.item() == pytest.approx(lexical)
        assert objective.teacher.temperature.item() == pytest.approx(teacher)


@pytest.mark.parametrize("classes", [0, 1])
def test_the_proxy_loss_needs_two_classes(classes: int) -> None:
    with pytest.raises(ValueError, match="classes"):
        Objective(Losses(proxy=1.0), WIDTH, classes)
    assert Objective(Losses(), WIDTH, classes).proxies is None


def test_a_given_tree_and_its_weight() -> None:
    """32 classes are the least that get a coarse level."""
    classes, parents = 32, [[number % 2 for number in range(32)]]
    flat = Objective(Losses(proxy=1.0, coarse=0.0), WIDTH, classes, parents)
    built = Objective(Losses(proxy=1.0), WIDTH, classes)
    given = Objective(Losses(proxy=1.0, coarse=0.5), WIDTH, classes, parents)
    for objective, levels, known in ((flat, 1, False), (built, 2, False), (given, 2, True)):
        assert objective.proxies is not None
        assert len(objective.proxies.levels) == levels
        assert objective.proxies.given is known
    assert given.proxies is not None
    vectors = torch.cat([dense(IMAGE), dense(TEXT)])
    fine = given.proxies.levels[0](vectors, LABELS.repeat(2))
    coarse = given.proxies.levels[1](vectors, (LABELS % 2).repeat(2))
    torch.testing.assert_close(
        given(IMAGE, TEXT, 0, targets=Targets(LABELS))["proxy"], fine + 0.5 * coarse
    )


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("lexical", {"image_words"}),
        ("own_words", {"image_words"}),
        ("image_pairs", {"image_words", "items"}),
        ("memory", {"image_words", "items", "relevance"}),
        ("penalty_image", {"image_words"}),
        ("penalty_text", set()),
        ("dense", {"dense"}),
        ("distil", {"dense", "image_words"}),
        ("proxy", {"dense", "items"}),
        ("codis", {"teacher", "dense"}),
        ("tcl_cross", {"teacher", "dense"}),
        ("tcl_intra", {"teacher", "dense"}),
        ("tcl_local", {"teacher", "dense"}),
    ],
)
def test_what_a_term_needs(name: str, needs: set[str]) -> None:
    losses = only(name)
    for what in ("teacher", "dense", "image_words", "items", "relevance"):
        assert getattr(losses, f"needs_{what}") is (what in needs), what

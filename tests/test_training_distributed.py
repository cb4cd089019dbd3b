"""Two processes on this machine give the gradient of one with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import lexvla
from lexvla.losses import InfoNCE
from lexvla.torch_model import Features
from lexvla.training.gathering import gather_rows
from lexvla.training.gradient_cache import Parts, cached_backward
from lexvla.training.item_memory import ItemMemory
from lexvla.training.objective import Losses, Objective, Targets, TeacherView
from model_fakes import tiny_model

WORLD, ROWS = 2, 6
SIDE, WIDTH, WORDS = 24, 6, 15
TEXTS = ["a red dog", "hat", "two blue birds, flying", "the white horse", "man", "bicycle"]
CASES = ("contrast", "contrast in parts", "lexvla", "lexvla in parts")
Gradients = dict[str, Tensor]


def unit(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(values, dim=-1)


def own_rows(rank: int, world: int) -> slice:
    return slice(rank * ROWS // world, (rank + 1) * ROWS // world)


def backward(value: Tensor) -> None:
    value.backward()


def descend(
    module: nn.Module, objective: nn.Module, parts: int, forward: Any, loss: Any, span: slice
) -> Gradients:
    """Let one step of the processes add its gradient, as the trainer does."""
    wrapped: Any = DistributedDataParallel(module) if distributed.is_initialized() else module
    count = span.stop - span.start
    cuts = [slice(*pair) for pair in ((0, count),) * (parts == 1) or ((0, count - 1), (-1, None))]
    rows = [range(span.start, span.stop)[cut] for cut in cuts]
    spans = [slice(each[0], each[-1] + 1) for each in rows]
    if parts == 1:
        loss(forward(wrapped, spans[0])).backward()
    else:
        calls = [partial(forward, wrapped, each) for each in spans]
        cached_backward(calls, loss, backward, getattr(wrapped, "no_sync", nullcontext))
    found = {}
    ignored = getattr(module, "_ddp_params_and_buffers_to_ignore", ())
    for owner, each in (("model", module), ("objective", objective)):
        for name, weight in each.named_parameters():
            if weight.grad is None:
                continue
            if distributed.is_initialized() and (owner == "objective" or name in ignored):
                # The same rows and loss in all processes, so the same gradient.
                before = weight.grad.clone()
                distributed.broadcast(weight.grad, 0)
                torch.testing.assert_close(weight.grad, before)
            found[f"{owner} {name}"] = weight.grad
    return found


def contrast(parts: int, span: slice) -> Gradients:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    objective = InfoNCE(0.2).double()
    images, texts = unit(ROWS, 5, seed=1).double(), unit(ROWS, 5, seed=2).double()

    def forward(wrapped: Any, rows: slice) -> Parts:
        both = wrapped(torch.cat([images[rows], texts[rows]]))
        return list(functional.normalize(both, dim=1).chunk(2))

    def loss(columns: Parts) -> Tensor:
        image, text = (gather_rows(column) for column in columns)
        return objective.symmetric(image @ text.T)

    return descend(encoder, objective, parts, forward, loss, span)


def whole(parts: int, span: slice) -> Gradients:
    """All terms of the objective on a LexVLA."""
    model = tiny_model()
    model._ddp_params_and_buffers_to_ignore = ["codebook.codes"]
    assert model.codebook is not None
    codes = model.codebook.codes
    names = "dense codis tcl_cross tcl_intra tcl_local proxy distil penalty_image penalty_text "
    names += "own_words image_pairs memory"
    losses = Losses(**dict.fromkeys(names.split(), 0.5))
    torch.manual_seed(0)
    objective = Objective(losses, WIDTH, classes=3)
    pixels, ids = torch.randn(ROWS, 3, SIDE, SIDE), model.prompt_ids(TEXTS)
    seen = TeacherView(
        Features(
            unit(ROWS, WORDS, seed=3), unit(ROWS, WIDTH, seed=4), unit(ROWS, 9, WIDTH, seed=5)
        ),
        Features(
            unit(ROWS, WORDS, seed=6),
            unit(ROWS, WIDTH, seed=7),
            unit(ROWS, 3, WIDTH, seed=8),
            gather_rows(torch.ones(ROWS, 3, dtype=torch.bool)[span]),
        ),
        unit(8, WIDTH, seed=9),
        unit(8, WIDTH, seed=10),
        torch.tensor([-1, 0, 1, 2, 0, -1, 1, 2]),
    )
    items = torch.tensor([0, 1, 2, 2, 1, 0])
    words = (unit(ROWS, WORDS, seed=11) > 0.2).float()
    known = (items, functional.one_hot(items).float(), words, words.roll(1, 0))
    targets = Targets(*(gather_rows(each[span]) for each in known))
    memory = ItemMemory(3, WORDS, torch.float32)
    earlier = (Features(unit(ROWS, WORDS, seed=seed)) for seed in (12, 13))
    memory.remember(items, known[1], *earlier)

    def forward(wrapped: Any, rows: slice) -> Parts:
        features = wrapped(pixels[rows], ids[rows], dense=True, logits=True)
        return [part for each in features for part in (*each[:2], each.logits)]

    def loss(columns: Parts) -> Tensor:
        both = [gather_rows(column) for column in columns]
        image, text = (
            Features(lexical, vectors, logits=logits)
            for lexical, vectors, logits in (both[:3], both[3:])
        )
        terms = objective(image, text, 5000, codes, seen, targets, memory)
        assert len(terms) == 14
        return torch.stack(list(terms.values())).sum()

    return descend(model, objective, parts, forward, loss, span)


def compute(case: str, span: slice) -> Gradients:
    kind = contrast if case.startswith("contrast") else whole
    return kind(2 if case.endswith("parts") else 1, span)


def gathered(rank: int) -> dict[str, Tensor]:
    """What `gather_rows` gives, and its gradient, where process r has rows r, r, ..."""
    rows = torch.full((3, 2), float(rank), requires_grad=True)
    found = gather_rows(rows)
    (found * torch.arange(6.0)[:, None]).sum().backward()
    assert rows.grad is not None
    turned = gather_rows((torch.arange(6).view(2, 3) + 10 * rank).T)
    flags = gather_rows(torch.tensor([rank == 0, True]))
    return {"rows": found.detach(), "gradient": rows.grad, "turned": turned, "flags": flags}


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=WORLD
    )
    found: dict[str, Any] = {case: compute(case, own_rows(rank, WORLD)) for case in CASES}
    found["gathered"] = gathered(rank)
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    root = str(Path(lexvla.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    more = {"PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank)],
            env=os.environ | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_whole_batch(case: str, found: list[dict[str, Any]]) -> None:
    expected = compute(case.removesuffix(" in parts"), slice(0, ROWS))
    assert len(expected) > 4
    tolerance = 1e-11 if case.startswith("contrast") else 1e-4
    for mine in found:
        assert mine[case].keys() == expected.keys()
        for name, gradient in expected.items():
            bound = tolerance * max(1e-3, float(gradient.abs().max()))
            torch.testing.assert_close(
                mine[case][name], gradient, atol=bound, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_rows_are_gathered_in_the_order_of_the_processes(found: list[dict[str, Any]]) -> None:
    for rank, mine in enumerate(found):
        each = mine["gathered"]
        assert each["rows"][:, 0].tolist() == [0, 0, 0, 1, 1, 1]
        # Twice the gradient of the own rows, for DDP halves it.
        assert each["gradient"][:, 0].tolist() == [2 * (3 * rank + n) for n in range(3)]
        rows = [[0, 3], [1, 4], [2, 5]]
        assert each["turned"].tolist() == rows + [[a + 10, b + 10] for a, b in rows]
        assert each["flags"].tolist() == [True, True, False, True]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

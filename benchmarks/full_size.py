"""Run the paper's architecture through all functions of a model, with random weights.

    python benchmarks/full_size.py --device cuda

Llama-2-7B's and DINOv2-base's shapes, the language model in NF4 with LoRA of rank 8, a vocabulary
of 17,149 words: assemble, encode, train, save, load. Checked are the gradients of trained weights,
that frozen weights do not change, the saved files, and that the loaded model encodes identically.
The exit code is 1 if a check fails.

LoRA's first matrix gets no gradient until its second has left zero, hence two steps.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from measuring import Peak, describe, synchronise
from random_backbones import SIZES, make_captions, make_images, write_backbones
from torch import Tensor

from lexvla.config import QUANTIZATIONS
from lexvla.encoding import Encoding
from lexvla.images import open_image
from lexvla.lexical_head import lexical_vector
from lexvla.losses import InfoNCE, overuse_penalty
from lexvla.preprocessing import preprocess
from lexvla.torch_model import TorchLexVLA
from lexvla.training.gradient_cache import cached_backward

LORA_RANK = 8
OVERUSE_IMAGE, OVERUSE_TEXT = 5e-4, 1e-3  # LexVLA section 3.4
RATE = 1e-4
PAPER = {"image codebook": 70.2e6, "projector": 17.1e6, "LoRA": 20e6}
PAPER_TOTAL = 109e6  # as the paper rounds it, with about 21 M of LoRA


class Checks:
    """Print checks and remember those that failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def __call__(self, name: str, passed: bool, more: str = "") -> None:
        """Record a check; ``more`` is shown if it failed."""
        print(f"- {'ok' if passed else 'FAILED'}: {name}{'' if passed else f' ({more})'}")
        if not passed:
            self.failed.append(name)


@contextmanager
def stage(name: str, device: torch.device) -> Iterator[None]:
    """Print the name of a stage, and finally its time and memory."""
    print(f"\n## {name}\n", flush=True)
    peak = Peak(device)
    started = time.perf_counter()
    yield
    synchronise(device)
    seconds = time.perf_counter() - started
    print(f"\n{seconds:.1f} s, peak {peak.gib():.2f} GiB\n", flush=True)


def part_of(name: str) -> str:
    """Return the part of the model that a trained parameter belongs to."""
    if name == "image_codebook":
        return "image codebook"
    return "LoRA" if "lora_" in name else "projector"


def trained(model: TorchLexVLA) -> dict[str, torch.nn.Parameter]:
    """Return the trained parameters."""
    return {name: part for name, part in model.named_parameters() if part.requires_grad}


def count_parts(model: TorchLexVLA, size_layers: int) -> dict[str, int]:
    """Print the parameters of each trained part and the paper's numbers."""
    counts = dict.fromkeys(PAPER, 0)
    for name, part in trained(model).items():
        counts[part_of(name)] += part.numel()
    deep = counts | {"LoRA": counts["LoRA"] * SIZES["full"].layers // size_layers}
    print("| trained | here | at 32 layers | paper |\n|---|---:|---:|---:|")
    rows = [(name, counts[name], deep[name], PAPER[name]) for name in PAPER]
    rows.append(("all", sum(counts.values()), sum(deep.values()), PAPER_TOTAL))
    for name, here, full, paper in rows:
        print(f"| {name} | {here:,} | {full:,} | {paper / 1e6:.1f} M |")
    return counts


def digests(model: TorchLexVLA) -> dict[str, str]:
    """Return a SHA-256 of each frozen weight, including quantisation constants."""
    own = trained(model)
    return {
        name: hashlib.sha256(_bytes(part)).hexdigest()
        for name, part in model.state_dict().items()
        if name not in own
    }


def _bytes(part: Tensor) -> np.ndarray:
    return part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def train(
    model: TorchLexVLA, texts: list[str], pixels: Tensor, steps: int, parts: int
) -> tuple[list[float], dict[str, list[float]]]:
    """Train on the same pairs and return the losses, and each parameter's gradient norms.

    Several parts pass through the model one after the other, by gradient caching.
    """
    contrast = InfoNCE().to(model.device)
    optimizer = torch.optim.AdamW([*trained(model).values(), *contrast.parameters()], lr=RATE)
    pairs = torch.arange(len(texts), device=model.device)
    losses, norms = [], {name: [] for name in trained(model)}

    def features(first: int, last: int, seed: int) -> list[Tensor]:
        torch.manual_seed(seed)  # the same dropout in both passes of gradient caching
        with torch.autocast(model.device.type, torch.bfloat16):
            text = lexical_vector(model.text_logits(texts[first:last]))
            return [text, lexical_vector(model.image_logits(pixels[first:last])[0])]

    def total(of: list[Tensor]) -> Tensor:
        text, image = of
        similarity = image @ text.T
        loss = contrast(similarity, pairs) + contrast(similarity.T, pairs)
        return loss + OVERUSE_IMAGE * overuse_penalty(image) + OVERUSE_TEXT * overuse_penalty(text)

    ends = [len(texts) * part // parts for part in range(parts + 1)]
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        forwards = [
            partial(features, first, last, step * parts + part)
            for part, (first, last) in enumerate(pairwise(ends))
        ]
        if parts > 1:
            loss = cached_backward(forwards, total, Tensor.backward, nullcontext)
        else:
            loss = total(forwards[0]())
            loss.backward()
        for name, part in trained(model).items():
            norms[name].append(float("nan") if part.grad is None else part.grad.norm().item())
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses, norms


def check_gradients(check: Checks, norms: dict[str, list[float]]) -> None:
    """Check that every trained part has a finite, non-zero gradient."""
    finite = [name for name, values in norms.items() if not np.isfinite(values).all()]
    check("every trained parameter has a finite gradient in each step", not finite, str(finite[:3]))
    zero = [name for name, values in norms.items() if not any(values)]
    check("every trained parameter has a gradient other than zero", not zero, str(zero[:3]))
    for part in PAPER:
        of_part = [values for name, values in norms.items() if part_of(name) == part]
        shown = " -> ".join(
            f"{np.linalg.norm(values):.2g}" for values in zip(*of_part, strict=True)
        )
        check(f"gradient of the {part}, by step: {shown}", bool(of_part), "no such parameter")


def equal(one: Encoding, other: Encoding) -> bool:
    """Tell whether two encodings are identical."""
    pairs = [
        (one.lexical.data, other.lexical.data),
        (one.lexical.indices, other.lexical.indices),
        (one.lexical.indptr, other.lexical.indptr),
        (one.patches, other.patches),
    ]
    return all(a is b is None or a.tobytes() == b.tobytes() for a, b in pairs)


def run(args: argparse.Namespace, folder: Path) -> list[str]:
    """Run all stages and return the checks that failed."""
    device, check = torch.device(args.device), Checks()
    size = SIZES["tiny" if args.tiny else "full"]
    size = size.cut(args.layers or size.layers)
    print(", ".join(f"{k} {v}" if k != "device" else v for k, v in describe(device).items()))
    print(f"{size.layers} of 32 and {size.vision_layers} of 12 layers, {args.quantization}")
    with stage("write random backbones", device):
        text, vision = write_backbones(size, Path(args.backbones or folder / "b"), args.device)
    with stage("assemble by from_backbones", device):
        model = TorchLexVLA.from_backbones(
            text,
            vision,
            quantization=args.quantization,
            lora_rank=LORA_RANK,
            device=device,
            dtype=torch.bfloat16,
            dense_width=0,  # the paper has no dense vectors, and no codes of them
            codebook_size=0,
            **size.settings(),
        )
        count_parts(model, size.layers)
    words = len(model.vocabulary)
    check(f"{words:,} words, as {size.words:,} pieces are words", words == size.words)
    texts, files = make_captions(model.vocabulary, args.pairs), make_images(args.pairs)
    with stage(f"encode {len(texts)} texts and as many images", device):
        before = model.encode_text(texts), model.encode_image(files)
        for encoding, name in zip(before, ("text", "image"), strict=True):
            print(f"{model.sparsity(encoding)['active_dims']:,.0f} active words per {name}")
    frozen = digests(model)
    opened = map(open_image, files)
    config = model.config
    pixels = preprocess(opened, config.image_side, config.image_mean, config.image_std)
    with stage(f"{args.steps} training steps of {args.pairs} pairs", device):
        losses, norms = train(model, texts, pixels.to(device), args.steps, args.parts)
        print("loss " + " -> ".join(f"{loss:.4f}" for loss in losses))
    check_gradients(check, norms)
    changed = [name for name, digest in digests(model).items() if frozen[name] != digest]
    check(f"none of {len(frozen)} frozen weights changed", not changed, str(changed[:3]))
    after = model.encode_text(texts), model.encode_image(files)
    moved = not any(equal(a, b) for a, b in zip(before, after, strict=True))
    check("training changed the encodings of texts and of images", moved)
    with stage("save", device):
        model.save_pretrained(folder / "m")
        files_of = sorted(path for path in (folder / "m").rglob("*") if path.is_file())
        for path in files_of:
            print(f"- `{path.relative_to(folder / 'm')}`: {path.stat().st_size / 1e6:,.1f} MB")
    weights = {str(p.relative_to(folder / "m")) for p in files_of if p.suffix == ".safetensors"}
    own = {"model.safetensors", "lora/adapter_model.safetensors"}
    check("no backbone is saved", weights == own, str(weights - own))
    held = sum(part.nbytes for part in trained(model).values())
    saved = sum((folder / "m" / name).stat().st_size for name in own)
    check("the saved weights are the trained ones", held <= saved < held + 2**20, f"{saved:,} B")
    del model
    with stage("load again", device):
        loaded = TorchLexVLA.from_pretrained(folder / "m", device=device)
    again = loaded.encode_text(texts), loaded.encode_image(files)
    for one, other, name in zip(after, again, ("texts", "images"), strict=True):
        check(f"the loaded model encodes the {name} to the same bits", equal(one, other))
    return check.failed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--layers", type=int, help="of each backbone; 2 on CPUs, else all")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="nf4")
    parser.add_argument("--pairs", type=int, help="in a batch; 8 on CPUs, else 64")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--parts", type=int, default=1, help="of a batch, by gradient caching")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--tiny", action="store_true", help="run very small backbones instead")
    parser.add_argument("--backbones", metavar="FOLDER", help="keep the random checkpoints here")
    args = parser.parse_args(arguments)
    cpu = torch.device(args.device).type == "cpu"
    args.layers = args.layers or (2 if cpu else None)
    args.pairs = args.pairs or (8 if cpu else 64)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        failed = run(args, Path(folder))
    print(f"\n{'FAILED: ' + '; '.join(failed) if failed else 'All checks passed.'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

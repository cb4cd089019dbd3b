"""Measure texts and images a second of the encode API at full architecture size.

    python benchmarks/encode.py --device cuda --size full

The weights are random (`random_backbones`), the rest is real: checkpoints on disk,
`LexVLA.from_backbones`, `encode_text`, `encode_image`. Without quantisation, the model is as from
`from_pretrained(merge_lora=True, dtype=...)`: LoRA is merged, and all weights have one type. With
quantisation, LoRA cannot be merged.

All prompts begin with the same tokens. Three ways to run these are interleaved, on prepared token
ids: (a) in full for every text, left-padded; (b) once a batch; (c) once for all batches, as
`encode_text` does.

FLOP are counted as in `flop`, without a text's shared prompt. The peak of the device is measured by
a large matrix product, interleaved with the encode method, so that other load slows both.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from flop import image_flop, text_flop
from measuring import Clock, Peak, Product, describe
from random_backbones import SIZES, make_captions, make_images, write_backbones
from torch import Tensor

from lexvla.config import QUANTIZATIONS
from lexvla.images import open_image
from lexvla.preprocessing import preprocess
from lexvla.text_tower import PrefixCache
from lexvla.tokens import tokenize
from lexvla.torch_model import TorchLexVLA

LORA_RANK = 8
DISTINCT_IMAGES = 16  # a larger batch repeats them
MOST_BATCHES = 32  # of texts in one call
Figures = dict[str, Any]


def run_in_full(model: TorchLexVLA, token_ids: list[list[int]]) -> Tensor:
    """Return the last states of left-padded sequences, without sharing a prefix."""
    length = max(map(len, token_ids))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in token_ids])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in token_ids])
    ids, mask = ids.to(model.device), mask.to(model.device)
    output = model.text_tower.language_model.get_decoder()(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
    )
    return output.last_hidden_state[:, -1]


def measure_texts(model: TorchLexVLA, clock: Clock, product: Product, batch: int) -> Figures:
    """Measure texts at a batch size."""
    config, words = model.config, len(model.vocabulary)
    texts = make_captions(model.vocabulary, MOST_BATCHES * batch)

    def ids_of(some: list[str]) -> list[list[int]]:
        return tokenize(model.tokenizer, some, config.prompt, config.max_text_tokens)

    ids, kept = ids_of(texts[:batch]), PrefixCache()
    model.text_tower(ids_of(["one", "two"]), kept)  # they share only the prompt
    prompt = len(kept.ids)
    full, each, cached = clock.medians(
        lambda: run_in_full(model, ids),
        lambda: model.text_tower(ids, PrefixCache()),
        lambda: model.text_tower(ids, kept),
    )
    # As many batches as fit into a third of the time, so that the prompt matters little.
    count = max(1, min(MOST_BATCHES, int(clock.seconds / 3 / cached))) if cached else 1
    chosen = texts[: count * batch]
    encode, most = clock.medians(lambda: model.encode_text(chosen, batch_size=batch), product)
    own = [len(row) - prompt for row in ids_of(chosen)]
    return {
        "batch": batch,
        "prompt_tokens": prompt,
        "tokens": statistics.mean(own),
        "in_full": _ratio(batch, full),
        "once_a_batch": _ratio(batch, each),
        "cached": _ratio(batch, cached),
        "gain_once_a_batch": _ratio(full, each),
        "gain_cached": _ratio(full, cached),
        "encode": _ratio(len(chosen), encode),
        "product_flop_per_s": _ratio(product.flop, most),
        "flop": statistics.mean(text_flop(config, words, tokens, prompt) for tokens in own),
    }


def measure_images(model: TorchLexVLA, clock: Clock, product: Product, batch: int) -> Figures:
    """Measure images at a batch size: from pixels on the device, and from JPEG files."""
    config, files = model.config, make_images(DISTINCT_IMAGES)
    opened = map(open_image, files)
    distinct = preprocess(opened, config.image_side, config.image_mean, config.image_std)
    numbers = torch.arange(batch) % len(files)
    pixels = distinct[numbers].to(model.device)
    chosen = [files[i] for i in numbers]
    forward, encode, most = clock.medians(
        lambda: model.image_logits(pixels),
        lambda: model.encode_image(chosen, batch_size=batch),
        product,
    )
    return {
        "batch": batch,
        "forward": _ratio(batch, forward),
        "encode": _ratio(batch, encode),
        "product_flop_per_s": _ratio(product.flop, most),
        "flop": image_flop(config, len(model.vocabulary)),
    }


def _ratio(amount: float | None, seconds: float | None) -> float | None:
    return amount / seconds if amount and seconds else None


def load(args: argparse.Namespace, quantization: str, folder: Path) -> TorchLexVLA:
    """Load the model of a size through the public loaders."""
    dtype = getattr(torch, args.dtype)
    if args.size == "default":
        return TorchLexVLA.from_pretrained(device=args.device, dtype=dtype)
    size = SIZES[args.size]
    text, vision = write_backbones(size, folder, args.device)
    model = TorchLexVLA.from_backbones(
        text,
        vision,
        quantization=quantization,
        lora_rank=0 if quantization == "none" else LORA_RANK,
        device=args.device,
        dtype=dtype,
        **size.settings(),
    )
    for parameter in model.parameters():  # as from_pretrained with a dtype
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model


def measure(args: argparse.Namespace, show: Callable[[Figures], None]) -> Figures:
    """Measure all points, and show the results after each."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    clock = Clock(device, args.seconds)
    product = Product(device, dtype, args.matmul_side)
    data = {"size": args.size, "dtype": args.dtype, **describe(device)}
    data |= {"matmul_side": args.matmul_side, "models": []}
    with tempfile.TemporaryDirectory() as temporary:
        for quantization in args.quantization:
            model = load(args, quantization, Path(args.backbones or temporary))
            part = {"quantization": quantization, "words": len(model.vocabulary)}
            data["models"].append(part | {"texts": [], "images": []})
            for batch in args.batch_sizes:
                for kind, of in (("texts", measure_texts), ("images", measure_images)):
                    peak = Peak(device)
                    with torch.inference_mode():
                        row = of(model, clock, product, batch)
                    row["flop_per_s"] = row["encode"] and row["encode"] * row["flop"]
                    row["share"] = _ratio(row["flop_per_s"], row["product_flop_per_s"])
                    data["models"][-1][kind].append(row | {"peak_gib": peak.gib()})
                    show(data)
            del model
            gc.collect()
    return data


def to_markdown(data: Figures) -> str:
    """Return the figures as tables; empty cells are out of memory."""
    versions = ", ".join(f"{k} {data[k]}" for k in ("torch", "transformers", "bitsandbytes"))
    lines = [f"Size `{data['size']}`, {data['dtype']}, on {data['device']}; {versions}."]
    lines[0] += " The product is of {0} x {0} matrices.".format(data["matmul_side"])
    for part in data["models"]:
        for kind, columns in (("texts", _TEXTS), ("images", _IMAGES)):
            if not (rows := part[kind]):
                continue
            lines += ["", f"**{kind.capitalize()}, quantisation: {part['quantization']}.** "]
            lines[-1] += f"{rows[-1]['flop'] / 1e9:.3g} GFLOP each, {part['words']:,} words"
            if kind == "texts":
                lines[-1] += f", {rows[-1]['prompt_tokens']} tokens of prompt before each text and "
                lines[-1] += f"{rows[-1]['tokens']:.1f} of its own"
            lines += ["", f"| {' | '.join(columns)} |", "|---:" * len(columns) + "|"]
            for row in rows:
                cells = (_cell(row[key], scale) for key, scale in columns.values())
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_LAST = {
    "TFLOP/s": ("flop_per_s", 1e-12),
    "product": ("product_flop_per_s", 1e-12),
    "% of it": ("share", 100),
    "peak GiB": ("peak_gib", 1),
}
_TEXTS = {
    "batch": ("batch", 1),
    "(a) prompt in full, texts/s": ("in_full", 1),
    "(b) once a batch": ("once_a_batch", 1),
    "(c) kept": ("cached", 1),
    "b : a": ("gain_once_a_batch", 1),
    "c : a": ("gain_cached", 1),
    "`encode_text`, texts/s": ("encode", 1),
    **_LAST,
}
_IMAGES = {
    "batch": ("batch", 1),
    "pixels to logits, images/s": ("forward", 1),
    "`encode_image`, images/s": ("encode", 1),
    **_LAST,
}


def _cell(value: float | None, scale: float) -> str:
    if value is None:
        return "out of memory"
    value *= scale
    return f"{value:,.0f}" if value >= 100 or isinstance(value, int) else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=[*SIZES, "default"], default="full")
    parser.add_argument("--dtype", help="bfloat16 on GPUs, else float32")
    parser.add_argument("--quantization", nargs="+", choices=QUANTIZATIONS, metavar="Q")
    parser.add_argument("--batch-sizes", nargs="+", type=int, metavar="B")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--matmul-side", type=int, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch on the CPU")
    parser.add_argument("--backbones", metavar="FOLDER", help="keep the random checkpoints here")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write them after every point")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    gpu = torch.device(args.device).type == "cuda"
    args.dtype = args.dtype or ("bfloat16" if gpu else "float32")
    args.batch_sizes = args.batch_sizes or ([1, 8, 32, 64, 128, 256] if gpu else [1, 8, 32])
    args.matmul_side = args.matmul_side or (8192 if gpu else 2048)
    default = ["none"] if args.size == "default" else ["none", "nf4"]
    args.quantization = args.quantization or default
    if args.size == "default" and args.quantization != ["none"]:
        parser.error("the default model has no backbone to quantise")

    def shown(data: Figures) -> str:
        return json.dumps(data, indent=2) + "\n" if args.json else to_markdown(data)

    def show(data: Figures) -> None:
        part = data["models"][-1]
        done = part["images"] or part["texts"]
        print(f"{part['quantization']}, batch {done[-1]['batch']}: done", file=sys.stderr)
        if args.out:
            args.out.write_text(shown(data), encoding="utf-8")

    print(shown(measure(args, show)), end="")


if __name__ == "__main__":
    main()

"""Train a small CLIP on the training drawings, to measure words from models without training.

    python benchmarks/small_clip.py --out runs/small-clip [--minutes 20] [--threads 2]

A `CLIPModel` of transformers of 4 M parameters learns labels and tags of the drawings of
`scripts/build_training_drawings.py` by the contrastive loss of CLIP (Radford et al., ICML 2021,
arXiv 2103.00020), with most patches left out of each step as in FLIP (Li et al., CVPR 2023,
arXiv 2212.00794). Drawings of one set of 400 items are left out, to choose settings with
(`held_out`); the demo's drawings are in none of the sets. Training stops when it has used so many
minutes of processor time, and goes on where it stopped if it is started again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

__all__ = ["held_out", "read_drawings"]

SIDE, PATCH, PIECES, LONGEST = 64, 8, 5000, 24
HELD_ITEMS, HELD_STYLE = 400, 1
BATCH, RATE = 256, 1.5e-3
SAVED_EVERY = 60  # seconds of processor time
KEPT, WHOLE = 20, 0.85  # of 64 patches; from this share of the time on, all are kept
TEMPLATES = ("{}", "{}", "a photo of {}", "a photo of a {}.", "a picture of {}", "a drawing of {}")


def read_drawings(folder: Path) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]], np.ndarray]:
    """Return pixels (n, 64, 64, 4), the item of each, items, and which drawings are held out."""
    with np.load(folder / "drawings.npz") as stored:
        pixels, item, style = (stored[name] for name in ("pixels", "item", "style"))
    lines = (folder / "items.jsonl").read_text("utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    chosen = np.random.default_rng(0).permutation(len(items))[:HELD_ITEMS]
    return pixels, item, items, (style == HELD_STYLE) & np.isin(item, chosen)


def held_out(folder: Path) -> tuple[list[Image.Image], list[str], list[list[str]]]:
    """Return images, labels and tags of the drawings that training leaves out, one an item."""
    pixels, item, items, held = read_drawings(folder)
    places = [int(np.flatnonzero(held & (item == one))[0]) for one in np.unique(item[held])]
    images = [Image.fromarray(_on_colour(pixels[[at]], 255)[0]) for at in places]
    named = [items[item[at]] for at in places]
    return images, [one["label"] for one in named], [one["tags"] for one in named]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of lower-cased byte pairs that learnt the texts."""
    made = Tokenizer(models.BPE(unk_token=None))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    special = ["<pad>", "<end>", "<start>"]  # CLIP takes an end of number 2 for an old checkpoint's
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<end>", 1), ("<start>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=LONGEST,
    )


def make_model(pieces: int) -> CLIPModel:
    """Return a CLIP with random weights."""
    config = CLIPConfig(
        projection_dim=192,
        text_config={
            **{"vocab_size": pieces, "hidden_size": 192, "intermediate_size": 512},
            **{"num_hidden_layers": 2, "num_attention_heads": 3, "projection_dim": 192},
            **{"max_position_embeddings": LONGEST},
            **{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1},
        },
        vision_config={
            **{"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4},
            **{"num_attention_heads": 3, "projection_dim": 192},
            **{"image_size": SIDE, "patch_size": PATCH},
        },
    )
    return CLIPModel(config)


def _on_colour(drawings: np.ndarray, colour: Any) -> np.ndarray:
    alpha = drawings[..., 3:].astype(np.float32) / 255
    mixed = drawings[..., :3] * alpha + np.asarray(colour, np.float32) * (1 - alpha)
    return np.rint(mixed).astype(np.uint8)


def augment(drawings: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Return (B, 3, 64, 64) normalised drawings: turned, scaled, moved, tinted, on a colour."""
    count = len(drawings)
    colours = np.where(
        rng.random((count, 1, 1, 1)) < 0.7, 255, rng.integers(0, 256, (count, 1, 1, 3))
    )
    pixels = torch.from_numpy(_on_colour(drawings, colours)).permute(0, 3, 1, 2).float() / 255
    angle = torch.from_numpy(rng.normal(0, 0.15, count)).float()
    scale = torch.from_numpy(rng.uniform(0.8, 1.25, count)).float()
    stretch = torch.from_numpy(rng.uniform(0.9, 1.1, count)).float()
    cos, sin = angle.cos() * scale, angle.sin() * scale
    move = torch.from_numpy(rng.uniform(-0.12, 0.12, (2, count))).float()
    matrix = torch.stack([cos * stretch, -sin, move[0], sin, cos / stretch, move[1]], dim=1).view(
        count, 2, 3
    )
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    pixels = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    gain = torch.from_numpy(rng.normal(1, 0.12, (count, 3, 1, 1))).float()
    shift = torch.from_numpy(rng.normal(0, 0.06, (count, 1, 1, 1))).float()
    grey = torch.from_numpy(rng.random((count, 1, 1, 1)) < 0.1)
    pixels = torch.where(grey, pixels.mean(1, keepdim=True).expand_as(pixels), pixels)
    return ((pixels * gain + shift).clamp(0, 1) - 0.5) / 0.5


def image_vectors(model: CLIPModel, pixels: torch.Tensor, kept: int) -> torch.Tensor:
    """Return (B, d) vectors of images, from so many of their patches, drawn at random."""
    vision = model.vision_model
    tokens = vision.embeddings(pixels)
    chosen = torch.rand(len(pixels), tokens.shape[1] - 1).argsort(1)[:, :kept] + 1
    chosen = torch.cat([torch.zeros(len(pixels), 1, dtype=torch.long), chosen], dim=1)
    tokens = tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
    states = vision.encoder(inputs_embeds=vision.pre_layrnorm(tokens)).last_hidden_state
    return model.visual_projection(vision.post_layernorm(states[:, 0]))


def phrase(item: dict[str, Any], rng: np.random.Generator) -> str:
    """Return a text for a drawing: its label, a tag, or both, in a template."""
    tags, kind = item["tags"], rng.random()
    if not tags or kind < 0.5:
        words = item["label"]
    elif kind < 0.75:
        words = str(rng.choice(tags))
    else:
        words = ", ".join([item["label"], *map(str, rng.choice(tags, min(2, len(tags)), False))])
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(words)


def step(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    drawings: np.ndarray,
    numbers: np.ndarray,
    items: list[dict[str, Any]],
    rng: np.random.Generator,
    kept: int,
) -> torch.Tensor:
    """Return CLIP's loss; drawings of one item are right for each other's texts."""
    texts = [phrase(items[number], rng) for number in numbers]
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    images = functional.normalize(image_vectors(model, augment(drawings, rng), kept), dim=-1)
    words = model.get_text_features(**inputs).pooler_output
    logits = images @ functional.normalize(words, dim=-1).T * model.logit_scale.exp().clamp(max=50)
    same = torch.from_numpy(numbers[:, None] == numbers[None]).float()
    target = same / same.sum(1, keepdim=True)
    return (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    ) / 2


def main() -> None:
    """Train and save a model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/small-clip"))
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    pixels, item, items, held = read_drawings(args.data)
    places = np.flatnonzero(~held)
    texts = [text for one in items for text in (one["label"], *one["tags"])]
    tokenizer = make_tokenizer([*texts, *TEMPLATES])
    model = make_model(len(tokenizer)).train()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(places):,} drawings")
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.98), weight_decay=0.1)
    args.out.mkdir(parents=True, exist_ok=True)
    state, spent, done = args.out / "state.pt", 0.0, 0
    if state.exists():
        saved = torch.load(state)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        spent, done = saved["spent"], saved["steps"]
    rng = np.random.default_rng(done)
    limit, began, saved_at = args.minutes * 60 * args.threads, time.process_time() - spent, spent
    order = places[:0]
    while spent < limit:
        if len(order) < BATCH:
            order = rng.permutation(places)
        part, order = order[:BATCH], order[BATCH:]
        share = spent / limit
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (done + 1) / 60) * (0.5 + 0.5 * math.cos(math.pi * share))
        kept = KEPT if share < WHOLE else (SIDE // PATCH) ** 2
        loss = step(model, tokenizer, pixels[part], item[part], items, rng, kept)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done, spent = done + 1, time.process_time() - began
        if done % 10 == 0:
            print(f"step {done}, {spent:.0f} s, loss {loss.item():.3f}", flush=True)
        if spent - saved_at > SAVED_EVERY:
            saved_at = spent
            values = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**values, "spent": spent, "steps": done}, state.with_suffix(".part"))
            state.with_suffix(".part").replace(state)
            save(model, tokenizer, args.out)
    save(model, tokenizer, args.out)
    state.unlink(missing_ok=True)
    print(f"{done} steps of {BATCH} in {spent:.0f} s of processor time: {args.out}")


def save(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a folder that transformers loads."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)


if __name__ == "__main__":
    main()

"""Checkpoints of backbones of any size with random weights.

They replace Llama-2-7B and DINOv2-base, which may not be redistributed: speed and memory depend on
the architecture only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from itertools import chain, groupby, product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Dinov2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from lexvla.config import PROMPT
from lexvla.vocabulary import WORD_START, Vocabulary

DEVIATION = 0.02  # of random weights, as Llama and DINOv2 begin
_SPECIAL = ("<unk>", "<s>", "</s>")
_SYLLABLES = tuple(map("".join, product("bdfgklmnprstvz", "aeiou")))
_OTHERS = 0x4E00  # where characters begin that are no ASCII letters


@dataclass(frozen=True)
class Size:
    """Sizes of a pair of backbones, by default of Llama-2-7B and DINOv2-base."""

    width: int = 4096
    inner: int = 11008
    layers: int = 32
    heads: int = 32
    pieces: int = 32000
    words: int = 17149  # of the pieces, what the paper keeps
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision_side: int = 518
    patch: int = 14
    adapter_width: int = 2304
    image_size: int = 224

    def cut(self, layers: int) -> Size:
        """Return a size of the same widths with fewer layers in each backbone."""
        return replace(
            self,
            layers=min(layers, self.layers),
            vision_layers=min(layers, self.vision_layers),
        )

    def settings(self) -> dict[str, int]:
        """Return the fields of `LexVLAConfig` for the backbones."""
        return {
            "image_size": self.image_size,
            "adapter_heads": self.vision_heads,
            "adapter_width": self.adapter_width,
        }


FULL = Size()
SIZES = {
    "full": FULL,
    "small": FULL.cut(2),
    "tiny": Size(64, 128, 2, 2, 1000, 500, 64, 2, 2, 56, 14, 96, 56),
}


def write_backbones(size: Size, folder: Path, device: str = "cpu") -> tuple[str, str]:
    """Write both backbones in bfloat16, unless they exist, and return their folders."""
    text, vision, done = folder / "text", folder / "vision", folder / "size.json"
    if done.exists() and json.loads(done.read_text(encoding="utf-8")) == asdict(size):
        return str(text), str(vision)
    done.unlink(missing_ok=True)
    build_tokenizer(size.pieces, size.words).save_pretrained(text)
    language = LlamaConfig(
        vocab_size=size.pieces,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    _write(language, AutoModelForCausalLM, text, device)
    images = Dinov2Config(
        hidden_size=size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        image_size=size.vision_side,
        patch_size=size.patch,
    )
    _write(images, AutoModel, vision, device)
    done.write_text(json.dumps(asdict(size)), encoding="utf-8")
    return str(text), str(vision)


def _write(config: PretrainedConfig, kind: type, folder: Path, device: str) -> None:
    """Write random weights of an architecture, with one layer in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = kind.from_config(config, dtype=torch.bfloat16)
    shapes = {name: part.shape for name, part in model.state_dict().items()}
    generator = torch.Generator(device).manual_seed(0)
    groups = [list(names) for _, names in groupby(shapes, _layer)]
    index, total = {}, 0
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = {name: _random(name, shapes[name], generator).cpu() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        total += sum(part.nbytes for part in tensors.values())
        index |= dict.fromkeys(names, file)
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")
    config.architectures, config.dtype = [type(model).__name__], torch.bfloat16
    config.save_pretrained(folder)


def _layer(name: str) -> str:
    found = re.match(r".*layers?\.\d+\.", name)
    return found[0] if found else name


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    kind = {"dtype": torch.bfloat16, "device": generator.device}
    if len(shape) > 1:
        return torch.empty(shape, **kind).normal_(0, DEVIATION, generator=generator)
    # What has one dimension is a bias, or the scale of a norm or of a layer.
    return torch.zeros(shape, **kind) if name.endswith("bias") else torch.ones(shape, **kind)


def build_tokenizer(pieces: int, words: int) -> PreTrainedTokenizerFast:
    """Build a Llama-like tokenizer with an exact number of words by the rule ``letters``.

    Three of four words start with the word-start mark, as ``▁bada``; the rest continue another.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}]"), behavior="isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="always", split=False),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    shown = dict.fromkeys(re.findall(r"[A-Za-z]{2,}", PROMPT.replace("{text}", "")))
    kept = [WORD_START + word for word in shown]
    for number, word in zip(range(words - len(kept)), _made_words(), strict=False):
        kept.append(word if number % 4 == 3 else WORD_START + word)
    letters = [mark + letter for mark in ("", WORD_START) for letter in _letters()]
    fixed = [*_SPECIAL, *kept, *letters, WORD_START, *(WORD_START + mark for mark in '".,:')]
    others = [chr(_OTHERS + i) for i in range(pieces - len(fixed))]
    scores = [(piece, -20.0 if len(piece) < 3 else -10.0) for piece in chain(fixed, others)]
    tokenizer.model = models.Unigram(scores, unk_id=0)
    tokenizer.add_special_tokens(list(_SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _letters() -> str:
    return "".join(chr(ord(first) + i) for first in "aA" for i in range(26))


def _made_words() -> Iterator[str]:
    for length in (2, 3):
        yield from map("".join, product(_SYLLABLES, repeat=length))


def make_captions(vocabulary: Vocabulary, count: int, seed: int = 0) -> list[str]:
    """Return captions of 10 to 15 words; one word in four has a second piece."""
    random = np.random.default_rng(seed)
    starts = [t[1:] for t in vocabulary.terms if t.startswith(WORD_START)]
    rests = [t for t in vocabulary.terms if not t.startswith(WORD_START)] or [""]
    captions = []
    for _ in range(count):
        words = random.choice(starts, random.integers(10, 16))
        more = np.where(random.random(len(words)) < 0.25, random.choice(rests, len(words)), "")
        captions.append(" ".join(map("".join, zip(words, more, strict=True))))
    return captions


def make_images(count: int, seed: int = 0) -> list[bytes]:
    """Return JPEG files of 640 x 480 pixels, as smooth and large as photographs."""
    random = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8))
        file = BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files

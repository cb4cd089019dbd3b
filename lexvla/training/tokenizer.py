"""A Llama-style tokenizer with every word of the captions as a piece."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import combinations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lexvla.text_normalisation import normalise_text
from lexvla.vocabulary import WORD_START, Vocabulary

__all__ = ["build_vocabulary", "train_tokenizer"]

_SPECIAL = ["<unk>", "<s>", "</s>"]
_BEHIND = 1e-3  # ranks a word after those of the captions
_LONGEST_PIECE = 12  # characters of a piece that is not a whole word


def train_tokenizer(
    captions: Iterable[str], pieces_below_words: int, known_words: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    """Make a unigram tokenizer of the captions' words, and of smaller pieces for other words.

    Text is lower-cased and stripped of accents, then split into words and punctuation marks, each
    with Llama's word-start mark.

    Args:
        captions: The texts to cover.
        pieces_below_words: Number of smaller pieces to keep.
        known_words: Texts whose words are whole pieces too; those in no caption get consecutive
            token ids after the captions' words.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}]"), behavior="isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="always", split=False),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()

    def pieces_of(text: str) -> list[str]:
        normal = tokenizer.normalizer.normalize_str(normalise_text(text))
        return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]

    words: Counter[str] = Counter()
    for caption in captions:
        words.update(pieces_of(caption))
    total = sum(words.values())
    # A whole word outscores any split, which adds up at least two scores below the penalty.
    scores = {word: math.log((count + 1) / total) for word, count in words.items()}
    penalty = min(scores.values())
    for text in known_words:
        for piece in pieces_of(text):
            scores.setdefault(piece, penalty - _BEHIND)
    for piece, score in _smaller_pieces(words, pieces_below_words).items():
        scores.setdefault(piece, score + penalty)
    pieces = [(token, 0.0) for token in _SPECIAL]
    pieces += sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    tokenizer.model = models.Unigram(pieces, unk_id=0)
    tokenizer.add_special_tokens(_SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _smaller_pieces(words: Iterable[str], number: int) -> dict[str, float]:
    """Return the letters of the words and frequent parts of them, with scores.

    Not `UnigramTrainer`, which is not deterministic: a resumed run needs the same tokenizer.
    """
    counts: Counter[str] = Counter()
    for word in words:
        for start, end in combinations(range(len(word) + 1), 2):
            if end - start <= _LONGEST_PIECE:
                counts[word[start:end]] += 1
    whole = set(words)
    parts = [part for part in counts if part not in whole]
    parts.sort(key=lambda part: (len(part) > 1, -counts[part] * len(part), part))
    total = sum(counts[part] for part in parts[:number])
    return {part: math.log(counts[part] / total) for part in parts[:number]}


def build_vocabulary(
    tokenizer: PreTrainedTokenizerFast, captions: Iterable[str], dropped: frozenset[str]
) -> Vocabulary:
    """Keep the words of letters and digits that the captions produce, except ``dropped`` ones."""
    seen: set[int] = set()
    for ids in tokenizer(list(captions), add_special_tokens=False)["input_ids"]:
        seen.update(ids)
    kept = []
    for token_id in sorted(seen):
        piece = tokenizer.convert_ids_to_tokens(token_id)
        word = piece.removeprefix(WORD_START)
        whole = piece.startswith(WORD_START) and word.isascii() and word.isalnum()
        if whole and word not in dropped:
            kept.append((piece, token_id))
    return Vocabulary([piece for piece, _ in kept], [token_id for _, token_id in kept])

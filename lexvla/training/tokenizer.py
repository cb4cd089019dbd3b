"""A Llama-style tokenizer in which every word of the captions is one piece."""

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
_BEHIND = 1e-3  # puts a word behind those of the captions
_LONGEST_PIECE = 12  # characters of a piece that is no whole word


def train_tokenizer(
    captions: Iterable[str], pieces_below_words: int, known_words: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    """Make a unigram tokenizer: the captions' words, whole, over smaller pieces for other words.

    Text is lower-cased and stripped of accents; words and punctuation marks are split first and
    each gets Llama's word-start mark.

    Args:
        captions: The texts to cover.
        pieces_below_words: How many smaller pieces to keep for words that are not covered.
        known_words: Texts whose words are whole pieces too; those that no caption has get token
            ids in one row, behind the captions' words.
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
    # A whole word outscores any split of it: its score is that of one frequent piece, while a
    # split adds up at least two, each under the penalty.
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
    """Return the letters of the words and the parts that many words share, with their scores.

    Not `UnigramTrainer`: it adds up in no fixed order, so no two of its tokenizers are the same,
    and a resumed run needs the very one that it began with.
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
    """Keep the word pieces of letters and digits that the captions produce.

    Args:
        tokenizer: Gives the pieces.
        captions: Pieces that none of them produces are left out.
        dropped: Words to leave out: those that say nothing of an item.
    """
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

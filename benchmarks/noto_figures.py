"""Figures of a model on the bundled emoji, found from their pixels alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import sparse

from lexvla.data.demo_corpus import DemoItem
from lexvla.data.phrasings import plural, title_case
from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla_search.evaluation.batches import encode_in_batches
from lexvla_search.evaluation.retrieval import dcg, ndcg_at_k, precision_at_k, recall_at_k

__all__ = ["KS", "PHRASINGS", "NotoFigures", "evaluate_noto", "tag_relevance"]

KS = (1, 5, 10)
MIN_BEARERS, MAX_BEARERS = 3, 60  # a tag outside this range is too rare or too general
TAG_DEPTH = 10
_BATCH = 64


def _split_longest(text: str, mark: str) -> str:
    words = text.split(" ")
    at = max(range(len(words)), key=lambda number: len(words[number]))
    middle = len(words[at]) // 2
    words[at] = words[at][:middle] + mark + words[at][middle:]
    return " ".join(words)


# How people type and paste a label.
PHRASINGS: dict[str, Callable[[str], str]] = {
    "photo of X": lambda text: f"photo of {text}",
    "a photo of a X.": lambda text: f"a photo of a {text}.",
    "picture of two Xs": lambda text: f"picture of two {plural(text)}",
    "Xs": plural,
    "UPPER CASE": str.upper,
    "Title Case": title_case,
    "curly quotes": lambda text: f"\u201c{text}\u201d",
    "curly apostrophes": lambda text: text.replace("'", "\u2019"),
    "straight apostrophes": lambda text: text.replace("\u2019", "'"),
    "zero-width spaces": lambda text: _split_longest(text, "\u200b").replace(" ", " \u200b"),
    "soft hyphen": lambda text: _split_longest(text, "\u00ad"),
}


@dataclass(frozen=True)
class NotoFigures:
    """Figures of one run over the corpus. Ties count against everywhere.

    Figures of dense vectors and codes are ``None`` for a model without them.

    Attributes:
        label_to_image: R@k of finding the one image that bears the label, by words.
        image_to_label: R@k of finding the image's own label.
        fused_label_to_image: The same by the sum of lexical and dense cosine.
        words_per_text: Mean number of active words in a label's vector.
        words_per_image: Mean number of active words in an image's vector.
        tags: How many tags were searched for: those that 3 to 60 items bear.
        tag_ndcg: nDCG@10 of tag to images.
        tag_precision: P@10 of tag to images.
        chance_recall: R@k of a random order.
        chance_tag_ndcg: nDCG@10 of a random order, on average.
        chance_tag_precision: P@10 of a random order, on average.
        phrasings: R@1 of label to image by words, for the plain label and each of `PHRASINGS`.
            The default model is trained on phrasings such as these: the figures tell whether it
            has learnt them, not how it takes others. Five plurals are other items' labels.
        dense_label_to_image: R@k of label to image by dense vectors alone.
        codes_label_to_image: The same by codes alone.
        summed_label_to_image: The same by the plain sum of words, dense vectors and codes.
        unused_codes: Share of the codes that neither an image nor a label keeps.
    """

    model: str
    items: int
    label_to_image: dict[int, float]
    image_to_label: dict[int, float]
    words_per_text: float
    words_per_image: float
    tags: int
    tag_ndcg: float
    tag_precision: float
    chance_recall: dict[int, float]
    chance_tag_ndcg: float
    chance_tag_precision: float
    phrasings: dict[str, float]
    fused_label_to_image: dict[int, float] | None = None
    fused_image_to_label: dict[int, float] | None = None
    dense_label_to_image: dict[int, float] | None = None
    codes_label_to_image: dict[int, float] | None = None
    summed_label_to_image: dict[int, float] | None = None
    unused_codes: float | None = None

    @property
    def phrasing_points(self) -> dict[str, float]:
        """Return how many points of R@1 each phrasing gains over the plain label."""
        plain = self.phrasings["plain"]
        return {name: 100 * (found - plain) for name, found in self.phrasings.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "phrasing_points": self.phrasing_points}


def evaluate_noto(model: Encoder, items: Sequence[DemoItem]) -> NotoFigures:
    """Encode every image, label and tag, and measure retrieval by each leg and by their sums."""
    starts = range(0, len(items), _BATCH)  # images are opened batch by batch
    batches = ([item.image for item in items[at : at + _BATCH]] for at in starts)
    images = Encoding.concat([model.encode_image(batch) for batch in batches])
    labels = encode_in_batches(model.encode_text, [item.label for item in items])
    tags, relevant = tag_relevance(items)
    own = range(len(items))
    by_label = sparse.csr_array(labels.lexical @ images.lexical.T)
    by_tag = sparse.csr_array(encode_in_batches(model.encode_text, tags).lexical @ images.lexical.T)
    label_to_image = recall_at_k(by_label, own, KS)
    legs: dict[str, dict[int, float]] = {}
    unused: float | None = None
    both: np.ndarray | None = None
    if images.dense is not None and labels.dense is not None:
        by_dense = labels.dense @ images.dense.T
        both = by_label.toarray() + by_dense
        legs["fused_label_to_image"] = recall_at_k(both, own, KS)
        legs["fused_image_to_label"] = recall_at_k(both.T, own, KS)
        legs["dense_label_to_image"] = recall_at_k(by_dense, own, KS)
    if images.codes is not None and labels.codes is not None:
        by_codes = sparse.csr_array(labels.codes @ images.codes.T)
        legs["codes_label_to_image"] = recall_at_k(by_codes, own, KS)
        used = np.union1d(images.codes.indices, labels.codes.indices)
        unused = 1 - len(used) / images.codes.shape[1]
        if both is not None:
            legs["summed_label_to_image"] = recall_at_k(both + by_codes.toarray(), own, KS)
    return NotoFigures(
        model=model.name,
        items=len(items),
        label_to_image=label_to_image,
        image_to_label=recall_at_k(sparse.csr_array(by_label.T), own, KS),
        words_per_text=labels.lexical.nnz / len(items),
        words_per_image=images.lexical.nnz / len(items),
        tags=len(tags),
        tag_ndcg=ndcg_at_k(by_tag, relevant, TAG_DEPTH),
        tag_precision=precision_at_k(by_tag, relevant, TAG_DEPTH),
        chance_recall={k: min(1.0, k / len(items)) for k in KS},
        chance_tag_ndcg=_chance_ndcg(relevant, TAG_DEPTH),
        chance_tag_precision=float(relevant.mean()),
        phrasings={"plain": label_to_image[1], **_phrasings(model, items, images)},
        unused_codes=unused,
        **legs,
    )


def tag_relevance(items: Sequence[DemoItem]) -> tuple[list[str], np.ndarray]:
    """Return the tags that 3 to 60 items bear, sorted, and who bears them: (tags, items)."""
    bearers = Counter(tag for item in items for tag in set(item.tags))
    tags = sorted(tag for tag, n in bearers.items() if MIN_BEARERS <= n <= MAX_BEARERS)
    rows = {tag: row for row, tag in enumerate(tags)}
    relevant = np.zeros((len(tags), len(items)), dtype=bool)
    for column, item in enumerate(items):
        for tag in item.tags:
            if tag in rows:
                relevant[rows[tag], column] = True
    return tags, relevant


def _phrasings(model: Encoder, items: Sequence[DemoItem], images: Encoding) -> dict[str, float]:
    found = {}
    for name, phrasing in PHRASINGS.items():
        texts = encode_in_batches(model.encode_text, [phrasing(item.label) for item in items])
        by_text = sparse.csr_array(texts.lexical @ images.lexical.T)
        found[name] = recall_at_k(by_text, range(len(items)), (1,))[1]
    return found


def _chance_ndcg(relevant: np.ndarray, k: int) -> float:
    ideal = np.sort(relevant, axis=1)[:, ::-1][:, :k].astype(float)
    expected = np.broadcast_to(relevant.mean(axis=1, keepdims=True), ideal.shape)
    return float(np.mean(dcg(expected) / dcg(ideal)))

"""Small sources of image-text pairs, for the tests of data and training."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from image_bytes import encoded
from lexvla.data.captions import read_captions
from lexvla.data.hf_datasets import HuggingFaceStream, HuggingFaceTable, load_hugging_face
from lexvla.data.karpathy import read_karpathy
from lexvla.data.loader import Batch, PairLoader
from lexvla.data.pairs import IndexedSource, Pair, PairList, Record, ShardedSource, bad_record
from lexvla.data.webdataset_shards import WebDatasetShards
from lexvla.errors import InputError

BROKEN = b"\x89PNG\r\n\x1a\nbroken"
COUNT, BAD = 13, (3, 8)  # records of every fake source, and those that cannot be decoded


def colour(number: int) -> tuple[int, int, int]:
    return (number * 16, 255 - number, number)


def png(number: int) -> bytes:
    return encoded(Image.new("RGB", (4, 3), colour(number)), "PNG")


def image_file(number: int) -> bytes:
    return BROKEN if number in BAD else png(number)


def texts(number: int) -> list[str]:
    return [f"text {number}{letter}" for letter in "abc"]


def write_images(folder: Path, count: int = COUNT) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number:02}.png").write_bytes(image_file(number))
    return folder


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def members(numbers: Iterable[int]) -> Iterator[tuple[str, bytes]]:
    for number in numbers:
        yield f"{number:06}.png", image_file(number)
        yield f"{number:06}.txt", texts(number)[0].encode()
        yield f"{number:06}.json", json.dumps({"caption": "another", "class": number % 2}).encode()


def write_parquet(path: Path, numbers: Iterable[int], paths: Path | None = None) -> Path:
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    numbers = list(numbers)
    data: dict[str, list[Any]] = {"name": [f"n{n}" for n in numbers]}
    data["text"] = [texts(n) for n in numbers]
    data["kind"] = [f"kind {n % 2}" for n in numbers]
    feature = Value("string") if paths else ImageFeature()
    data["image"] = [
        f"{n:02}.png" if paths else {"bytes": image_file(n), "path": None} for n in numbers
    ]
    string = Value("string")
    features = Features({"name": string, "text": List(string), "kind": string, "image": feature})
    Dataset.from_dict(data, features).to_parquet(str(path))
    return path


class FakeShards:
    """Shards in memory: pairs, and numbers whose records are bad."""

    name = "fake shards"
    fingerprint = "fake"

    def __init__(self, sizes: list[int], bad: Iterable[int] = ()) -> None:
        self.sizes, self.bad = sizes, frozenset(bad)
        self.opened: list[int] = []

    @property
    def shards(self) -> int:
        return len(self.sizes)

    def read_shard(self, number: int) -> Iterator[Record]:
        self.opened.append(number)
        first = sum(self.sizes[:number])
        for each in range(first, first + self.sizes[number]):
            if each in self.bad:
                yield bad_record(InputError(f"p{each}", "is bad"))
            else:
                pair = fake_pair(each)
                yield lambda pair=pair: pair


def fake_pair(number: int, broken: bool = False, label: str | None = None) -> Pair:
    image = BROKEN if broken else png(number % 16)
    return Pair(f"p{number}", image, tuple(texts(number)), label)


def fake_list(
    count: int, bad: Iterable[int] = (), labels: list[str | None] | None = None
) -> PairList:
    labels = labels or [None] * count
    return PairList("fake list", [fake_pair(n, n in set(bad), labels[n]) for n in range(count)])


SOURCES = ("csv", "jsonl", "karpathy", "table", "stream", "shards", "fake shards")


def make_source(kind: str, folder: Path) -> IndexedSource | ShardedSource:
    """Write the records 0 to 12 in some form and open them."""
    if kind == "fake shards":
        return FakeShards([4, 0, 5, 4], BAD)
    if kind == "shards":
        for shard, numbers in enumerate((range(5), range(5, 6), range(6, COUNT))):
            write_tar(folder / f"s-{shard}.tar", members(numbers))
        return WebDatasetShards(folder / "s-{0..2}.tar", label_key="class")
    if kind in ("table", "stream"):
        for part, numbers in enumerate((range(6), range(6, COUNT))):
            write_parquet(folder / f"{part}.parquet", numbers)
        return open_parquet(folder / "*.parquet", folder, streaming=kind == "stream")
    images = write_images(folder / "images")
    if kind == "karpathy":
        records = [
            {
                "filename": f"{n:02}.png",
                "split": "train",
                "sentences": [{"raw": t} for t in texts(n)],
            }
            for n in range(COUNT)
        ]
        (folder / "dataset.json").write_text(json.dumps({"images": records}))
        return read_karpathy(folder / "dataset.json", images)
    if kind == "csv":
        lines = ["image,caption"]
        lines += [f"images/{n:02}.png,{text}" for n in range(COUNT) for text in texts(n)]
        (folder / "captions.csv").write_text("\n".join(lines))
        return read_captions(folder / "captions.csv")
    objects = [{"image": f"images/{n:02}.png", "text": texts(n), "id": n} for n in range(COUNT)]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, objects)))
    return read_captions(folder / "captions.jsonl")


def open_parquet(
    path: Path, cache: Path, streaming: bool = False, **columns: Any
) -> HuggingFaceTable | HuggingFaceStream:
    from lexvla.data.hf_datasets import Columns

    chosen = Columns(**({"id": "name", "label": "kind"} | columns))
    return load_hugging_face(path, columns=chosen, streaming=streaming, cache_dir=cache / "cache")


def facts(batch: Batch) -> tuple[list[Any], ...]:
    """Return a batch in a form that can be compared."""
    images = [(image.mode, image.size, image.tobytes()) for image in batch.images]
    return (batch.ids, images, batch.texts, batch.labels, batch.class_paths)


def take(loader: PairLoader, count: int) -> list[tuple[list[Any], ...]]:
    """Return the next batches, from one epoch into the next."""
    batches = loader.forever()
    return [facts(next(batches)) for _ in range(count)]


def make_loader(source: IndexedSource | ShardedSource, **options: Any) -> PairLoader:
    """Return a loader with small numbers."""
    chosen = {"batch_size": 4, "seed": 5, "buffer": 5, "workers": 0} | options
    return PairLoader(source, chosen.pop("batch_size"), **chosen)


def number_of(name: str) -> int:
    digits = "".join(c for c in name.rsplit("/", 1)[-1].removesuffix(".png") if c.isdigit())
    return int(digits)

"""Cross-modal protocols: recall by hand on small matrices, and files read and counted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse
from scipy.io import savemat

from lexvla.encoding import Encoding
from lexvla.errors import GatheredInputError, InputError, UnsupportedError
from lexvla_indexer.sources import open_item_source
from lexvla_search import Query
from lexvla_search.evaluation.crossmodal import (
    class_recall,
    paired_recall_any,
    scores_of,
    zero_shot,
)
from lexvla_search.evaluation.protocols import (
    CLASSIFIED,
    PAIRED,
    RETRIEVED,
    Counts,
    export_captions,
    read_captions,
    read_cars,
    read_cub,
    read_folders,
    read_inat,
    read_inshop,
    read_sop,
)
from lexvla_search.evaluation.trec import read_qrels, read_queries


def vectors(*rows: list[float], dense: bool = False) -> Encoding:
    matrix = np.array(rows, np.float32)
    return Encoding(sparse.csr_array(matrix), dense=matrix[:, :2].copy() if dense else None)


def test_scores_by_each_leg() -> None:
    queries, items = vectors([1, 0, 2], dense=True), vectors([3, 1, 0], [0, 1, 0], dense=True)
    assert scores_of(queries, items, "lexical").tolist() == [[3.0, -np.inf]]
    assert scores_of(queries, items, "dense").tolist() == [[3.0, 0.0]]
    assert scores_of(queries, items, "both").tolist() == [[6.0, 0.0]]
    with pytest.raises(UnsupportedError, match="dense"):
        scores_of(vectors([1, 0, 2]), items, "both")


def test_pairs_by_hand() -> None:
    # Images are unit words, so a caption's row is its scores. Two captions of each image.
    images = vectors([1, 0, 0], [0, 1, 0], [0, 0, 1])
    texts = vectors(
        [3, 1, 2],  # its image 0 is first; of image 0's captions the best
        [0, 1, 0],  # shares no word with its image 0: not found
        [5, 5, 1],  # image 1 ties with 0, which counts against: second
        [0, 2, 0],  # image 1 first
        [1, 6, 2],  # image 2 second
        [1, 0, 0],  # not found
    )
    figures = paired_recall_any(texts, images, [0, 0, 1, 1, 2, 2], ks=(1, 2))
    assert figures.text_to_image == {1: pytest.approx(2 / 6), 2: pytest.approx(4 / 6)}
    # Image 0: best own 3, another's 5 is before: second. Image 1: own 5, another's 6: second.
    # Image 2: own 2, and another's 2 ties: second.
    assert figures.image_to_text == {1: 0.0, 2: 1.0}
    assert figures.rsum == pytest.approx(100 * (2 / 6 + 4 / 6 + 0 + 1))


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
def test_pairs_are_those_of_plain_loops(seed: int, count: int, each: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(0, 3, (count * each + count, 4)).astype(np.float32)
    texts = Encoding(sparse.csr_array(rows[: count * each]))
    images = Encoding(sparse.csr_array(rows[count * each :]))
    owner = np.repeat(np.arange(count), each).tolist()
    figures = paired_recall_any(texts, images, owner)
    scores = (texts.lexical @ images.lexical.T).toarray()
    forth, back = [], []
    for text, image in enumerate(owner):
        own = scores[text, image]
        forth.append((scores[text] >= own).sum() if own else math.inf)
    for image in range(count):
        own = max(s for s, of in zip(scores[:, image], owner, strict=True) if of == image)
        before = sum(s >= own for s, of in zip(scores[:, image], owner, strict=True) if of != image)
        back.append(before + 1 if own else math.inf)
    for found, places in ((figures.text_to_image, forth), (figures.image_to_text, back)):
        assert found == {k: pytest.approx(np.mean(np.array(places) <= k)) for k in (1, 5, 10)}


def test_pairs_must_pair_up() -> None:
    rows = vectors([1, 0, 0], [0, 1, 0])
    for image_of in ([0], [0, 0], [0, 2]):
        with pytest.raises(ValueError, match="each caption must have one"):
            paired_recall_any(rows, rows, image_of)


def test_class_recall_by_hand() -> None:
    rows = vectors([4, 0, 0], [2, 1, 0], [3, 0, 0], [0, 0, 1], [0, 1, 0])
    # Without itself: 0 sees b 12 and a 8; 1 sees a 8 before b 6 and b 1; 2 sees a 12 and a 6,
    # and of its class nothing; 3 shares no word with anything; 4 sees a 1, not its class.
    assert class_recall(rows, ["a", "a", "b", "c", "b"], ks=(1, 2, 5)) == {1: 0.2, 2: 0.4, 5: 0.4}


def test_class_recall_ties_count_against_and_the_gallery_is_whole() -> None:
    queries, gallery = vectors([1, 0, 0], [0, 1, 0]), vectors([2, 1, 0], [2, 0, 0], [1, 1, 0])
    labels = ["right", "wrong", "right"]
    found = class_recall(queries, ["right", "right"], gallery, labels, ks=(1, 2))
    assert found == {1: 0.5, 2: 1.0}
    with pytest.raises(ValueError, match="do not fit"):
        class_recall(queries, ["right"])


@given(st.integers(0, 10_000))
def test_class_recall_is_that_of_sorting(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(0, 3, (300, 3)).astype(np.float32)  # more rows than a block has
    labels = [str(label) for label in random.integers(0, 40, 300)]
    scores = rows @ rows.T
    hits = {1: 0, 4: 0}
    for i in range(300):
        others = [j for j in range(300) if j != i and scores[i, j] > 0]
        others.sort(key=lambda j: (-scores[i, j], labels[j] == labels[i]))
        for k in hits:
            hits[k] += any(labels[j] == labels[i] for j in others[:k])
    found = class_recall(Encoding(sparse.csr_array(rows)), labels, ks=(1, 4))
    assert found == {k: pytest.approx(count / 300) for k, count in hits.items()}


def test_zero_shot_by_hand() -> None:
    names = vectors([1, 0, 0], [0, 1, 0], [0, 0, 1])
    images = vectors([3, 1, 0], [2, 1, 0], [1, 2, 0], [2, 2, 0], [1, 1, 0])
    # a: right, right, second. b: ties with a: second. c: not found.
    figures = zero_shot(images, ["a", "a", "a", "b", "c"], names, ["a", "b", "c"], ks=(1, 2))
    assert figures.accuracy == {1: 0.4, 2: 0.8}
    assert figures.per_class == pytest.approx((2 / 3 + 0 + 0) / 3)
    with pytest.raises(ValueError, match="one of the classes"):
        zero_shot(images, ["a", "a", "a", "b", "d"], names, ["a", "b", "c"])


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path)
    return path


def lines(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    return path


def test_captions_of_karpathys_file_are_five_of_each_test_image(tmp_path: Path) -> None:
    images = []
    for name, split, captions in (
        ("a.png", "test", 6),
        ("b.png", "train", 5),
        ("c.png", "test", 5),
    ):
        picture(tmp_path / "pictures" / name)
        sentences = [{"raw": f"{name} {i}"} for i in range(captions)]
        images.append({"filename": name, "split": split, "sentences": sentences})
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"images": images}))
    found = read_captions(file, tmp_path / "pictures", counts=Counts(2, 10))
    assert [path.name for path in found.images] == ["a.png", "c.png"]
    assert found.texts == tuple(f"{name} {i}" for name in ("a.png", "c.png") for i in range(5))
    assert found.image_of == (0,) * 5 + (1,) * 5
    made = export_captions(found, tmp_path / "made")
    assert list(read_queries(made[1]).items())[5] == ("c.png#0", Query(text="c.png 0"))
    assert read_qrels(made[2])["c.png#4"] == {"c.png": 1}
    items = list(open_item_source(made[0]).entries())
    assert [(item.document.id, item.image) for item in items] == [
        (path.name, path) for path in found.images
    ]
    with pytest.raises(InputError, match=r"has 2 images; 1,000 are published"):
        read_captions(file, tmp_path / "pictures", counts=PAIRED["flickr30k"])
    with pytest.raises(InputError, match=r"has 10 captions; 25,000 are published"):
        read_captions(file, tmp_path / "pictures", counts=Counts(2, 25_000))
    (tmp_path / "pictures" / "c.png").unlink()
    with pytest.raises(InputError, match=r"1 images are missing; the first is c\.png"):
        read_captions(file, tmp_path / "pictures")


def cub(folder: Path) -> Path:
    """Write five images of the classes 1, 100, 101 and 200; of them 1, 3 and 5 are test images."""
    classes = {1: "001.Laysan_Albatross", 100: "100.Pelican", 101: "101.Gull", 200: "200.Wren"}
    rows = [(1, 1, 0), (2, 100, 1), (3, 101, 0), (4, 101, 1), (5, 200, 0)]
    lines(folder / "classes.txt", *(f"{label} {name}" for label, name in classes.items()))
    lines(folder / "images.txt", *(f"{i} {classes[label]}/{i}.png" for i, label, _ in rows))
    lines(folder / "image_class_labels.txt", *(f"{i} {label}" for i, label, _ in rows))
    lines(folder / "train_test_split.txt", *(f"{i} {training}" for i, _, training in rows))
    for i, label, _ in rows:
        picture(folder / "images" / classes[label] / f"{i}.png")
    return folder


def test_cub_is_split_by_class_for_retrieval_and_by_image_to_classify(tmp_path: Path) -> None:
    folder = cub(tmp_path)
    found = read_cub(folder, counts=Counts(3, 2))
    assert [path.name for path in found.images] == ["3.png", "4.png", "5.png"]
    assert found.labels == ("101", "101", "200")
    assert dict(found.class_names) == {"101": "Gull", "200": "Wren"}
    found = read_cub(folder, classify=True, counts=Counts(3, 3))
    assert found.labels == ("1", "101", "200")
    assert found.class_names["1"] == "Laysan Albatross"
    assert len(found.class_names) == 4
    with pytest.raises(InputError, match=r"has 3 images; 5,924 are published"):
        read_cub(folder, counts=RETRIEVED["cub"])
    with pytest.raises(InputError, match=r"has 2 classes; 100 are published"):
        read_cub(folder, counts=Counts(3, 100))


@pytest.mark.parametrize("file", ["image_class_labels.txt", "classes.txt"])
def test_a_class_of_cub_is_a_number(tmp_path: Path, file: str) -> None:
    folder = cub(tmp_path)
    with (folder / file).open("a") as out:
        out.write("gull 6\n6 gull\n")
    with pytest.raises(InputError, match="a class must be a number, not 'gull'"):
        read_cub(folder)


def test_lines_of_another_form_are_all_named(tmp_path: Path) -> None:
    folder = cub(tmp_path)
    lines(folder / "images.txt", "1 a.png", "2", "", "3 b c.png")
    with pytest.raises(GatheredInputError) as caught:
        read_cub(folder)
    assert [Path(error.item).name for error in caught.value.errors] == [
        "images.txt:2",
        "images.txt:4",
    ]
    lines(folder / "images.txt", "3 101.Gull/3.png")
    lines(folder / "image_class_labels.txt", "3 150")
    with pytest.raises(InputError, match=r"the image 101\.Gull/3\.png has no class"):
        read_cub(folder)


def test_cars_is_split_by_class_for_retrieval_and_by_image_to_classify(tmp_path: Path) -> None:
    rows = [
        ("car_ims/1.png", 1, 1),
        ("car_ims/2.png", 98, 0),
        ("car_ims/3.png", 99, 1),
        ("car_ims/4.png", 196, 0),
    ]
    kinds = [("relative_im_path", "O"), ("class", "O"), ("test", "O")]
    names = np.array([f"Car {i} Coupé" for i in range(1, 197)], dtype=object)
    file = tmp_path / "cars_annos.mat"
    savemat(file, {"annotations": np.array(rows, dtype=kinds), "class_names": names})
    for name, _, _ in rows:
        picture(tmp_path / name)
    found = read_cars(file, counts=Counts(2, 2))
    assert found.images == (tmp_path / "car_ims/3.png", tmp_path / "car_ims/4.png")
    assert found.labels == ("99", "196")
    assert len(found.class_names) == 98
    found = read_cars(file, classify=True, counts=Counts(2, 2))
    assert found.labels == ("1", "99")
    assert found.class_names["1"] == "Car 1 Coupé"
    assert len(found.class_names) == 196
    with pytest.raises(InputError, match=r"has 2 images; 8,041 are published"):
        read_cars(file, classify=True, counts=CLASSIFIED["cars"])
    with pytest.raises(InputError, match="is not a readable cars_annos"):
        read_cars(lines(tmp_path / "broken.mat", "no such thing"))


def test_products_are_those_of_the_test_list(tmp_path: Path) -> None:
    lines(
        tmp_path / "Ebay_test.txt",
        "image_id class_id super_class_id path",
        "1 11319 1 bicycle_final/111.png",
        "2 11319 1 bicycle_final/112.png",
        "3 11320 2 sofa_final/113.png",
    )
    for name in ("bicycle_final/111", "bicycle_final/112", "sofa_final/113"):
        picture(tmp_path / f"{name}.png")
    found = read_sop(tmp_path, counts=Counts(3, 2))
    assert found.labels == ("11319", "11319", "11320")
    assert found.images[2] == tmp_path / "sofa_final/113.png"
    assert not found.gallery
    found.images[0].unlink()
    with pytest.raises(InputError, match=r"1 images are missing; the first is .*111\.png"):
        read_sop(tmp_path)


def test_in_shop_has_queries_and_a_gallery(tmp_path: Path) -> None:
    rows = [
        ("1", "id_01", "train"),
        ("2", "id_02", "query"),
        ("3", "id_02", "gallery"),
        ("4", "id_03", "gallery"),
    ]
    lines(
        tmp_path / "Eval" / "list_eval_partition.txt",
        "4",
        "image_name item_id evaluation_status",
        *(f"img/WOMEN/{name}.png      {item}     {status}" for name, item, status in rows),
    )
    for name, _, _ in rows:
        picture(tmp_path / "img/WOMEN" / f"{name}.png")
    found = read_inshop(tmp_path, counts=Counts(1, 1, 2))
    assert (found.labels, found.gallery_labels) == (("id_02",), ("id_02", "id_03"))
    assert found.gallery[1] == tmp_path / "img/WOMEN/4.png"
    with pytest.raises(InputError, match=r"has 2 gallery images; 12,612 are published"):
        read_inshop(tmp_path, counts=Counts(1, 1, 12_612))


def test_species_are_named_by_their_folders(tmp_path: Path) -> None:
    paths = [
        "train_val2018/Aves/3/a.png",
        "train_val2018/Plantae/3/b.png",
        "train_val2018/Aves/3/c.png",
    ]
    file = lines(tmp_path / "Inat_dataset_splits" / "Inaturalist_test_set1.txt", *paths)
    for path in paths:
        picture(tmp_path / path)
    found = read_inat(tmp_path, counts=Counts(3, 2))
    assert found.labels == ("Aves/3", "Plantae/3", "Aves/3")
    lines(file, "a.png")
    with pytest.raises(InputError, match=r"'a\.png' is not a path of a group"):
        read_inat(tmp_path)


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in ("hot_dog/1.png", "hot_dog/2.png", "cat/1.png"):
        picture(tmp_path / name)
    lines(tmp_path / "cat" / "notes.txt", "no image")
    found = read_folders(tmp_path)
    assert found.labels == ("cat", "hot_dog", "hot_dog")
    assert dict(found.class_names) == {"cat": "cat", "hot_dog": "hot dog"}
    with pytest.raises(InputError, match="no such folder"):
        read_folders(tmp_path / "nothing")
    with pytest.raises(InputError, match="has no test images"):
        read_folders(tmp_path / "cat")


@pytest.mark.parametrize("read", [read_cub, read_sop, read_inshop, read_inat, read_cars])
def test_a_missing_file_is_named(read: Callable, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="read"):
        read(tmp_path / "nothing")

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from dual_fakes import GRID, KINDS, SIDE, WORDS, save_dual_encoder, word_file
from lexvla import LexVLA, public_settings
from lexvla.dual_encoder import DualEncoder
from lexvla.errors import ModelError, UnsupportedError, VocabularyMismatchError
from lexvla.word_decomposition import decompose
from lexvla.word_list import read_words
from lexvla_indexer import Document, open_index
from lexvla_indexer.base import check_match
from lexvla_search import cli
from model_fakes import picture
from search_fakes import save_pictures

PLAIN = ["{text}"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: Any, cache: None) -> DualEncoder:
    folder = tmp_path_factory.mktemp(request.param)
    return load(save_dual_encoder(folder, request.param), word_file(folder))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, cache: None) -> DualEncoder:
    folder = tmp_path_factory.mktemp("one-clip")
    return load(save_dual_encoder(folder), word_file(folder))


def load(folder: str, words: Path | None = None, **options: Any) -> DualEncoder:
    model = LexVLA.from_pretrained(folder, vocabulary=words, templates=PLAIN, **options)
    assert isinstance(model, DualEncoder)
    return model


def test_dense_vectors_are_the_models_own(model: DualEncoder) -> None:
    image = picture(1, (SIDE, SIDE))
    own = AutoModel.from_pretrained(model.config.model).eval()
    pixels = (np.asarray(image, np.float32) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.25]
    inputs = {"pixel_values": torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]}
    if own.config.model_type == "siglip2":
        cut = inputs["pixel_values"].view(3, GRID, 8, GRID, 8).permute(1, 3, 2, 4, 0)
        inputs = {
            "pixel_values": cut.reshape(1, GRID * GRID, -1),
            "pixel_attention_mask": torch.ones(1, GRID * GRID, dtype=torch.long),
            "spatial_shapes": torch.tensor([[GRID, GRID]]),
        }
    with torch.no_grad():
        whole = own.get_image_features(**inputs).pooler_output[0]
        long = "max_length" if own.config.model_type.startswith("siglip") else "longest"
        pieces = AutoTokenizer.from_pretrained(model.config.model)
        ids = pieces(["a red dog"], padding=long, max_length=40, return_tensors="pt")
        ids.pop("token_type_ids", None)
        text = own.get_text_features(**ids).pooler_output[0]
    dense = model.encode_image([image]).dense
    np.testing.assert_allclose(dense[0], whole / whole.norm(), atol=1e-5)
    dense = model.encode_text(["a red dog"]).dense
    np.testing.assert_allclose(dense[0], text / text.norm(), atol=1e-5)


def test_words_are_few_positive_and_placed(model: DualEncoder) -> None:
    images = model.encode_image([picture(1), picture(2)], max_active_dims=3)
    assert 0 < np.diff(images.lexical.indptr).max() <= 3
    assert images.lexical.data.min() > 0
    np.testing.assert_allclose(images.lexical.multiply(images.lexical).sum(axis=1), 1, atol=1e-5)
    maps = model.heatmaps(picture(1), images[0].lexical.indices.tolist())
    assert maps.shape == (images[0].lexical.nnz, GRID, GRID)
    for own, place in zip(maps, images[0].patches, strict=True):
        if own.max() > 0:
            assert own.argmax() == place


def test_a_word_is_nearest_to_itself(model: DualEncoder) -> None:
    for row, word in zip(model.decode(model.encode_words(WORDS)), WORDS, strict=True):
        assert row[0][0] == word
    assert model.nearest_words(model.encode_words(["hat"]).dense)[0][0] == (
        "hat",
        pytest.approx(1, abs=1e-5),
    )


def test_weights_of_texts(clip: DualEncoder) -> None:
    own = clip.encode_text(["a red dog"]).dense[0]
    products = np.sort(clip._words[0].numpy() @ own)[::-1].clip(0)
    weights = products[:2] - products[2]  # above the first word that is left out
    found = clip.encode_text(["a red dog"], max_active_dims=2).lexical.data
    np.testing.assert_allclose(np.sort(found)[::-1], weights / np.linalg.norm(weights), atol=1e-5)


def test_weights_of_images(clip: DualEncoder) -> None:
    words = clip._words[0]
    image = clip.encode_image([picture(1)], max_active_dims=3)
    own = torch.from_numpy(image.dense[0]) - torch.tensor(clip.config.image_centre)
    own /= own.norm()
    sums = decompose(own[None], words, clip.config.penalty, 3)[0]
    near = (words @ own).clamp(min=0)
    near = (near - near.sort(descending=True).values[3]).clamp(min=0)  # above the first left out
    both = sums / sums.norm() + 0.5 * near / near.norm()
    both[both < both.sort(descending=True).values[2]] = 0
    found = torch.from_numpy(image.lexical.toarray()[0])
    torch.testing.assert_close(found, both / both.norm(), atol=1e-5, rtol=0)


def test_regions_and_patches(model: DualEncoder) -> None:
    every = model.encode_patches([picture(1)])
    assert len(every) == GRID * GRID
    mask = np.zeros((GRID, GRID), bool)
    mask[1, 2] = True
    one = model.encode_region([picture(1)], [mask])
    assert set(one.patches.tolist()) == {5}
    np.testing.assert_allclose(one.lexical.toarray(), every[5].lexical.toarray(), atol=1e-5)
    np.testing.assert_array_equal(every.patches[every.lexical.indptr[5] :][0], 5)


def test_a_sum_of_words_is_compared_with_its_vector(clip: DualEncoder) -> None:
    images = clip.encode_image([picture(1), picture(2)])
    words, _, _ = clip._words
    centre = np.array(clip.config.image_centre)
    for row in range(2):
        own = images.dense[row] - centre
        made = images[row].lexical.toarray()[0] @ words.numpy()
        cosine = own @ made / np.linalg.norm(own) / np.linalg.norm(made)
        assert clip.reconstruction(images)[row] == pytest.approx(cosine, abs=1e-5)


def test_saved_settings_give_the_same(clip: DualEncoder, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path / "saved")
    loaded = LexVLA.from_pretrained(tmp_path / "saved")
    assert loaded.name == clip.name
    assert loaded.vocabulary == clip.vocabulary
    assert loaded.score_weights == {"lexical": 0.1, "dense": 1.0, "text": 0.1}
    for encode, items in (("encode_image", [picture(3)]), ("encode_text", ["a red dog"])):
        mine, yours = getattr(clip, encode)(items), getattr(loaded, encode)(items)
        np.testing.assert_array_equal(mine.lexical.toarray(), yours.lexical.toarray())
    path = tmp_path / "saved" / "config.json"
    values = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**values, "model": save_dual_encoder(tmp_path / "other", seed=1)}))
    with pytest.raises(ModelError, match="the weights are not those"):
        LexVLA.from_pretrained(tmp_path / "saved")
    path.write_text(json.dumps({**values, "format_version": 9}))
    with pytest.raises(ModelError, match="settings of format 9"):
        LexVLA.from_pretrained(tmp_path / "saved")


def test_the_name_tells_models_and_settings_apart(clip: DualEncoder, tmp_path: Path) -> None:
    words = word_file(tmp_path)
    other = load(save_dual_encoder(tmp_path / "b", seed=1), words)
    fewer = load(clip.config.model, words, max_active_dims=2)
    assert len({clip.name, other.name, fewer.name}) == 3
    moved = load(save_dual_encoder(tmp_path / "same"), words)
    assert moved.config.fingerprint == clip.config.fingerprint
    before = clip.name
    moved.calibrate([picture(1), picture(2)])
    assert moved.name.partition("@")[2] != before.partition("@")[2]
    moved.save_pretrained(tmp_path / "calibrated")
    assert LexVLA.from_pretrained(tmp_path / "calibrated").name == moved.name


def test_rounding_on_another_machine_leaves_the_name(
    clip: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    other = load(clip.config.model, word_file(tmp_path), dtype="bfloat16")
    assert other.config.image_centre != clip.config.image_centre
    assert other.name == clip.name


def test_means_of_other_pixels_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, words = save_dual_encoder(tmp_path / "m"), word_file(tmp_path)
    before = load(folder, words).config.image_centre
    changed = {"image_mean": [0.1, 0.1, 0.1], "image_std": [0.2, 0.3, 0.25]}
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps(changed), "utf-8")
    assert load(folder, words).config.image_centre != before


def test_saved_settings_find_their_model_from_any_folder(
    clip: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(clip.config.model).parent)
    load(Path(clip.config.model).name, word_file(tmp_path)).save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    assert LexVLA.from_pretrained("saved").name == clip.name


def test_options_that_would_be_ignored_are_refused(clip: DualEncoder, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path / "saved")
    for options in ({"vocabulary": word_file(tmp_path)}, {"penalty": 0.1, "templates": PLAIN}):
        rule = f"{', '.join(options)}: the saved settings cannot be changed; load "
        with pytest.raises(UnsupportedError, match=rule):
            LexVLA.from_pretrained(tmp_path / "saved", **options)
    for name in (clip.config.model, tmp_path / "saved"):
        with pytest.raises(UnsupportedError, match="quantization: a dual encoder takes no such"):
            LexVLA.from_pretrained(name, quantization="nf4")
    assert LexVLA.from_pretrained(device="cpu").facts()["words"] > 0
    with pytest.raises(UnsupportedError, match="templates: a LexVLA takes no such option"):
        LexVLA.from_pretrained(templates=PLAIN)
    with pytest.raises(ModelError, match="no LexVLA model here"):
        LexVLA.from_pretrained(tmp_path / "missing", vocabulary=word_file(tmp_path))


def test_words_of_heat_maps_may_be_columns(clip: DualEncoder) -> None:
    image = picture(2)
    maps = clip.heatmaps(image, np.array([1, 0], np.int32))
    np.testing.assert_array_equal(maps, clip.heatmaps(image, ["cat", "dog"]))
    for column in (-1, len(WORDS)):
        with pytest.raises(KeyError):
            clip.heatmaps(image, [column])


def test_an_index_of_another_word_rule_is_refused(
    clip: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = clip.name
    with open_index(
        tmp_path / "old.lex", create=True, vocabulary=clip.vocabulary, model=before
    ) as index:
        index.add([Document("red")], clip.encode_text(["red"]))
        index.commit()
        check_match(clip, index)
        monkeypatch.setitem(public_settings._WORD_RULES, "dual-encoder", 99)
        made = f"made by the model {before!r}; this is the model {clip.name!r}"
        with pytest.raises(VocabularyMismatchError, match=re.escape(made)):
            check_match(clip, index)


def test_the_vocabulary_is_embedded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, words = save_dual_encoder(tmp_path / "m"), word_file(tmp_path)
    first = load(folder, words).encode_text(["hat"])
    (stored,) = (tmp_path / "cache" / "lexvla" / "words").iterdir()

    def refuse(*_: Any) -> None:
        raise AssertionError("the vocabulary was embedded again")

    with monkeypatch.context() as patch:
        patch.setattr(DualEncoder, "_in_templates", refuse)
        again = load(folder, words).encode_text(["hat"])
        np.testing.assert_array_equal(first.lexical.toarray(), again.lexical.toarray())
        stored.write_bytes(stored.read_bytes()[:50])
        with pytest.raises(AssertionError, match="embedded again"):
            load(folder, words).encode_text(["hat"])
    load(folder, words).encode_text(["hat"])  # damaged: made again


def test_bad_input(clip: DualEncoder, tmp_path: Path) -> None:
    folder = clip.config.model
    with pytest.raises(UnsupportedError, match="runs on torch only"):
        LexVLA.from_pretrained(folder, runtime="onnx")
    with pytest.raises(ValueError, match="at least 1, not 0"):
        load(folder, word_file(tmp_path), max_active_dims=0)
    with pytest.raises(ValueError, match=r"below 1, not 1\.0"):
        load(folder, word_file(tmp_path), penalty=1.0)
    with pytest.raises(ValueError, match="each template must hold"):
        LexVLA.from_pretrained(folder, vocabulary=word_file(tmp_path), templates=["a photo"])
    path = Path(save_dual_encoder(tmp_path / "bare"))
    (path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"preprocessor_config.json .* is missing"):
        load(str(path), word_file(tmp_path))
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"cannot be loaded .*incomplete"):
        load(str(path), word_file(tmp_path))
    weights.unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(str(path), word_file(tmp_path))


@pytest.mark.parametrize("kind", ["clip_vision_model", "clip_text_model", "bert"])
def test_a_model_with_one_side_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), "utf-8")
    side = "text" if "vision" in kind else "image"
    with pytest.raises(ModelError, match=f"a {kind} model has no {side} side that gives words"):
        LexVLA.from_pretrained(tmp_path)


def test_word_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = word_file(tmp_path, ("dog", "", "hot  dog"))
    vocabulary = read_words(path)
    assert vocabulary.terms == ("dog", "hot▁dog")
    assert vocabulary.word(1) == "hot dog"
    assert vocabulary.find("Hot Dog") == 1
    with pytest.raises(ModelError, match=r"line 3: 'dog' is already in line 1"):
        read_words(word_file(tmp_path, ("dog", "cat", "dog")))
    with pytest.raises(ModelError, match="holds no words"):
        read_words(word_file(tmp_path, ("", " ")))
    with pytest.raises(ModelError, match="line 1: is longer than 80"):
        read_words(word_file(tmp_path, ("x" * 81,)))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="it is not UTF-8"):
        read_words(path)
    with pytest.raises(ModelError, match="No such file"):
        read_words(tmp_path / "none.txt")
    monkeypatch.setattr("lexvla.word_list.MOST_WORDS", 3)
    with pytest.raises(ModelError, match="line 4: a vocabulary holds at most 3 words"):
        read_words(word_file(tmp_path, ("a", "b", "c", "d")))


def test_the_words_that_ship() -> None:
    vocabulary = read_words()
    assert len(vocabulary) == 10_000
    for word in ("dog", "hot dog", "sunset", "red", "smartphone"):
        assert vocabulary.find(word) is not None


def test_index_and_explained_search(
    clip: DualEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip.save_pretrained(tmp_path / "clip")
    photos, address = save_pictures(tmp_path / "photos"), str(tmp_path / "photos.lex")
    model = ["--model", str(tmp_path / "clip")]
    assert cli.main(["index", str(photos), "--index", address, *model]) == 0
    capsys.readouterr()
    found = ["search", "dog", "--index", address, *model, "--explain", "--json"]
    assert cli.main(found) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    words = hits[0]["explanation"]["matches"]
    assert words
    assert {word["word"] for word in words} <= set(WORDS)
    legs = {part["leg"]: part for part in hits[0]["explanation"]["parts"]}
    assert legs["lexical"]["part"] == pytest.approx(0.1 * legs["lexical"]["score"], abs=1e-6)
    parts = [part["part"] for part in legs.values()]
    assert sum(parts) == pytest.approx(hits[0]["score"], abs=1e-6)
    assert cli.main(["info", "--index", address, *model, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["reconstruction"]
    encoded = clip.encode_image(sorted(photos.iterdir()))
    assert facts["images"] == len(encoded)
    assert facts["cosine"] == pytest.approx(clip.reconstruction(encoded).mean(), abs=0.01)
    fewer = load(clip.config.model, word_file(tmp_path), max_active_dims=2)
    fewer.save_pretrained(tmp_path / "fewer")
    assert cli.main(["info", "--index", address, "--model", str(tmp_path / "fewer")]) == 1
    assert f"was made by the model {clip.name!r}" in capsys.readouterr().err


def test_doctor_tells_how_well_words_say_it(
    clip: DualEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip.save_pretrained(tmp_path / "clip")
    cli.main(["doctor", "--model", str(tmp_path / "clip"), "--json"])
    facts = json.loads(capsys.readouterr().out)["model"]
    assert facts["name"] == clip.name
    assert facts["words"] == len(WORDS)
    assert facts["patches"] == "3 x 3"
    assert facts == clip.facts()
    assert 0 < facts["reconstruction"] < 1

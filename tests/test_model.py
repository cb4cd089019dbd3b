from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lexvla.config import PROMPT, LexVLAConfig
from lexvla.errors import ModelError
from lexvla.lexical_head import lexical_vector
from lexvla.preprocessing import preprocess
from lexvla.torch_model import TorchLexVLA
from lexvla.vocabulary import Vocabulary
from model_fakes import GRID, edit_json, edit_weights, picture, tiny_model

TEXTS = ["a red dog", "two blue birds", "hat"]
FILES = {
    "config.json",
    "model.safetensors",
    "text_model/config.json",
    "text_model/model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vision_model/config.json",
    "vision_model/model.safetensors",
    "vocabulary.json",
}
MADE = {"README.md", "text_model/generation_config.json"}  # not needed for loading


@pytest.fixture(scope="module")
def model() -> TorchLexVLA:
    return tiny_model()


@pytest.fixture(scope="module")
def saved(model: TorchLexVLA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refuse(folder: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        TorchLexVLA.from_pretrained(folder)
    for word in words:
        assert word in str(caught.value)


def encode(model: TorchLexVLA) -> tuple[np.ndarray, ...]:
    texts, images = model.encode_text(TEXTS), model.encode_image([picture(1), picture(2)])
    assert images.patches is not None
    return texts.lexical.toarray(), images.lexical.toarray(), images.patches


def assert_same(one: TorchLexVLA, other: TorchLexVLA) -> None:
    for mine, yours in zip(encode(one), encode(other), strict=True):
        np.testing.assert_array_equal(mine, yours)


@torch.no_grad()
def test_vectors_have_unit_length_and_no_negative_weight(model: TorchLexVLA) -> None:
    images = preprocess([picture(1), picture(2), picture(3)], 8 * GRID)
    for logits in (model.text_logits(TEXTS), model.image_logits(images)[0]):
        vectors = lexical_vector(logits)
        assert vectors.shape == (3, len(model.vocabulary))
        assert (vectors >= 0).all()
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


@torch.no_grad()
def test_text_logits_are_next_token_logits_of_the_kept_pieces(model: TorchLexVLA) -> None:
    logits = model.text_logits(TEXTS)
    for row, text in zip(logits, TEXTS, strict=True):
        ids = torch.tensor(model.tokenizer([PROMPT.replace("{text}", text)])["input_ids"])
        expected = model.text_tower.language_model(ids).logits[0, -1, model.vocabulary.token_ids]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_image_logits_are_the_best_of_the_patches_without_cls(model: TorchLexVLA) -> None:
    pixels = preprocess([picture(1), picture(2)], 8 * GRID)
    tower = model.image_tower
    states = tower.adapter(tower.vision_model(pixel_values=pixels).last_hidden_state)[:, 1:]
    assert states.shape == (2, GRID * GRID, 16)
    expected = (states @ model.image_codebook.T).max(dim=1)
    logits, place = model.image_logits(pixels)
    torch.testing.assert_close(logits, expected.values)
    assert place.tolist() == expected.indices.tolist()


@torch.no_grad()
def test_images_of_other_sizes_have_as_many_patches_as_fit(model: TorchLexVLA) -> None:
    assert model.image_tower(torch.zeros(1, 3, 16, 40)).shape == (1, 2 * 5, 16)


def test_the_image_codebook_starts_as_a_copy_of_the_texts(model: TorchLexVLA) -> None:
    rows = model.text_tower.language_model.lm_head.weight[list(model.vocabulary.token_ids or ())]
    assert torch.equal(model.image_codebook, rows)
    assert model.image_codebook.data_ptr() != rows.data_ptr()
    assert torch.equal(model.text_codebook(), rows)


def test_save_and_load_give_equal_bits(model: TorchLexVLA, saved: Path) -> None:
    loaded = TorchLexVLA.from_pretrained(saved)
    assert_same(loaded, model)
    assert loaded.vocabulary == model.vocabulary
    assert loaded.config.prompt == PROMPT
    assert not loaded.training
    found = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    assert found == FILES | MADE


def test_half_precision_on_disk_is_float32_in_memory(model: TorchLexVLA, tmp_path: Path) -> None:
    tiny_model().half().save_pretrained(tmp_path)
    loaded = TorchLexVLA.from_pretrained(tmp_path)
    rounded = {name: w.half().float() for name, w in model.state_dict().items()}
    for name, weight in loaded.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, rounded[name])
    assert TorchLexVLA.from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16


def test_the_name_follows_the_weights(saved: Path, tmp_path: Path) -> None:
    assert tiny_model().name == "lexvla@unsaved"
    loaded = TorchLexVLA.from_pretrained(saved)
    assert loaded.name == f"lexvla@{loaded.config.fingerprint[:12]}"
    for copy in ("same", "again"):
        loaded.save_pretrained(tmp_path / copy)
        assert TorchLexVLA.from_pretrained(tmp_path / copy).name == loaded.name
    named = loaded.name
    with torch.no_grad():
        loaded.image_codebook[0, 0] += 1
    loaded.save_pretrained(tmp_path / "changed")
    assert loaded.name != named
    assert TorchLexVLA.from_pretrained(tmp_path / "changed").name == loaded.name


def test_weights_of_scores_ship_with_the_model(saved: Path, tmp_path: Path) -> None:
    loaded = TorchLexVLA.from_pretrained(saved)
    assert (loaded.score_weights, loaded.relevance) == (None, None)
    named = loaded.name
    loaded.config.score_weights, loaded.config.relevance = {"lexical": 0.6, "dense": 0.4}, [9, -3.5]
    loaded.save_pretrained(tmp_path / "fitted")
    again = TorchLexVLA.from_pretrained(tmp_path / "fitted")
    assert again.score_weights == {"lexical": 0.6, "dense": 0.4}
    assert again.relevance == [9, -3.5]
    # No encoding follows from them: an index stays good.
    assert again.name == named


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"score_weights": {"words": 1.0}}, "score_weights: the model has no leg 'words'"),
        ({"score_weights": {"codes": 1.0}, "codebook_size": 0}, "the model has no leg 'codes'"),
        ({"score_weights": {"dense": -1}}, "the weight of the leg dense must be a finite number"),
        ({"score_weights": {"dense": "1"}}, "the weight of the leg dense must be a finite number"),
        ({"score_weights": {"dense": 0}}, "score_weights: one must be above 0"),
        ({"relevance": [1.0, 0.0]}, "relevance needs the score_weights"),
        ({"score_weights": {"dense": 1}, "relevance": [0, 1]}, "a slope above 0 and an intercept"),
        ({"score_weights": {"dense": 1}, "relevance": [1]}, "two finite numbers"),
    ],
)
def test_wrong_weights_of_scores(fields: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LexVLAConfig(**fields)


@pytest.mark.parametrize("name", sorted(FILES - {"tokenizer_config.json"}))
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refuse(folder, str(folder), f"{name} missing")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refuse(tmp_path / "none", "no LexVLA model here", "no such folder")
    refuse(tmp_path, "no LexVLA model here", "config.json missing")


@pytest.mark.parametrize("name", sorted(FILES - {"tokenizer_config.json"}))
@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_a_truncated_file_is_named(folder: Path, name: str, keep: float) -> None:
    data = (folder / name).read_bytes()
    length = int(len(data) * keep) if isinstance(keep, float) else keep
    if data[-1:] == b"\n":
        data = data[:-1]  # else only the last line break would go
    (folder / name).write_bytes(data[:length])
    refuse(folder, str(folder / name))


@pytest.mark.parametrize("place", [0, 9, 0.5, -1])
def test_a_flipped_bit_in_the_weights_is_found(folder: Path, place: float) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[int(len(data) * place) if isinstance(place, float) else place] ^= 1
    path.write_bytes(data)
    refuse(folder, str(path))


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(model_type="bert"),
        lambda v: v.pop("model_type"),
        lambda v: v.update(text_config=7),
        lambda v: v["text_config"].update(model_type="no-such-model"),
        lambda v: v["text_config"].update(hidden_size="wide"),
        lambda v: v.update(prompt="no place for it"),
    ],
)
def test_a_wrong_configuration_is_named(folder: Path, change: Callable[[dict], object]) -> None:
    edit_json(folder / "config.json", change)
    refuse(folder, str(folder / "config.json"))


def test_json_that_is_no_object_is_no_configuration(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")
    refuse(folder, str(folder / "config.json"))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda w: w.pop("image_codebook"), "missing"),
        (lambda w: w.update(more=torch.zeros(2)), "unexpected"),
        (lambda w: w.update(image_codebook=torch.zeros(3, 16)), "mismatched"),
    ],
)
def test_weights_that_do_not_fit(
    folder: Path,
    change: Callable[[dict], object],
    kind: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    edit_weights(folder, change)
    refuse(folder, str(folder / "model.safetensors"), kind)
    assert capfd.readouterr().err == ""


def test_a_vocabulary_of_another_size(folder: Path) -> None:
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    assert vocabulary.token_ids is not None
    Vocabulary(vocabulary.terms[1:], vocabulary.token_ids[1:]).save(folder / "vocabulary.json")
    refuse(folder, "vocabulary.json", "sha256")


def test_a_vocabulary_of_another_tokenizer(folder: Path, model: TorchLexVLA) -> None:
    ids = model.vocabulary.token_ids
    assert ids is not None
    path = folder / "vocabulary.json"
    Vocabulary(model.vocabulary.terms, ids[::-1]).save(path)
    refuse(folder, str(path), "not the tokenizer's pieces")
    Vocabulary(model.vocabulary.terms, [*ids[1:], 5000]).save(path)
    refuse(folder, str(path), "token ids that the language model does not have")
    Vocabulary(model.vocabulary.terms).save(path)
    refuse(folder, str(path), "needs the token id of each term")


def test_a_vocabulary_of_a_newer_format(folder: Path) -> None:
    edit_json(folder / "vocabulary.json", lambda v: v.update(format_version=2))
    refuse(folder, str(folder / "vocabulary.json"), "newer")


def test_saving_and_loading_say_nothing(saved: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from lexvla import LexVLA; "
        "model = LexVLA.from_pretrained(sys.argv[1]); "
        "model.encode_text(['red dog']); model.save_pretrained(sys.argv[2]); "
        # The caller's own settings stay as they were.
        "from transformers.utils import logging; "
        "assert logging.is_progress_bar_enabled(); assert logging.get_verbosity() == 30"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, saved, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

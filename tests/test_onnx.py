"""Exported models: the same encodings by ONNX Runtime as by torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lexvla import Encoding, LexVLA
from lexvla.errors import InputError, ModelError, UnsupportedError
from lexvla.onnx_format import FORMAT_VERSION
from lexvla.onnx_model import OnnxLexVLA
from model_fakes import edit_json, picture, tiny_model

pytest.importorskip("onnxscript", reason="needs the extra export: pip install 'lexvla[export]'")

from lexvla.onnx_export import export_model

TEXTS = [
    "a red dog",
    "white horse and man",
    "",
    '"dog',
    "nothing of it is known: xyz",
    "two blue birds, flying " * 20,
]
PICTURES = [picture(seed) for seed in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    tiny_model().save_pretrained(made / "saved")
    export_model(made / "saved", made / "exported")
    return made / "exported"


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[LexVLA, LexVLA]:
    return LexVLA.from_pretrained(folder), LexVLA.from_pretrained(folder, runtime="torch")


def assert_equal(mine: Encoding, yours: Encoding) -> None:
    assert mine.lexical.indices.tolist() == yours.lexical.indices.tolist()
    assert mine.lexical.indptr.tolist() == yours.lexical.indptr.tolist()
    np.testing.assert_allclose(mine.lexical.data, yours.lexical.data, rtol=1e-3)
    assert (mine.patches is None) == (yours.patches is None)
    if mine.patches is not None:
        assert mine.patches.tolist() == yours.patches.tolist()
    np.testing.assert_allclose(mine.dense, yours.dense, atol=1e-5)
    assert mine.codes.indices.tolist() == yours.codes.indices.tolist()
    np.testing.assert_allclose(mine.codes.data, yours.codes.data, rtol=1e-3)


def test_an_exported_model_runs_without_torch(folder: Path) -> None:
    code = (
        "import sys; from lexvla import LexVLA; "
        "model = LexVLA.from_pretrained(sys.argv[1]); "
        "print(model.decode(model.encode_text(['red dog']), top_k=1)[0][0][0]); "
        "print(*sorted({'torch', 'transformers', 'safetensors'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = tiny_model().decode(tiny_model().encode_text(["red dog"]), top_k=1)[0][0][0]
    assert done.stdout == f"{expected}\n\n"


def test_both_runtimes_have_one_name(both: tuple[LexVLA, LexVLA]) -> None:
    mine, yours = both
    assert type(mine) is OnnxLexVLA
    assert isinstance(yours, LexVLA)
    assert mine.name == yours.name
    assert mine.vocabulary == yours.vocabulary
    assert mine.patch_grid == yours.patch_grid
    assert repr(mine) == f"<OnnxLexVLA {mine.name!r}>"


def test_texts(both: tuple[LexVLA, LexVLA]) -> None:
    mine, yours = both
    found = mine.encode_text(TEXTS, batch_size=2)
    assert_equal(found, yours.encode_text(TEXTS, batch_size=2))
    assert found.lexical[[4]].nnz == 0  # no known word
    for row, text in enumerate(TEXTS):
        assert_equal(mine.encode_text([text]), found[row])


def test_a_text_that_changes_how_the_prompt_is_cut(tmp_path: Path) -> None:
    model = tiny_model(prompt="a re{text} now")
    model.save_pretrained(tmp_path)
    export_model(tmp_path, tmp_path)
    mine = LexVLA.from_pretrained(tmp_path)
    prefix = mine._prefix
    texts = ["d dog", "a dog", "d hat", "the cat"]  # "red" is one piece
    starts = [ids[: len(prefix)] == prefix for ids in model.prompt_ids(texts)]
    assert starts == [False, True, False, True]
    assert_equal(mine.encode_text(texts), model.encode_text(texts))


def test_images(both: tuple[LexVLA, LexVLA]) -> None:
    mine, yours = both
    assert_equal(mine.encode_image(PICTURES, batch_size=9), yours.encode_image(PICTURES))
    assert len(mine.encode_image(PICTURES, max_active_dims=1).lexical.data) == len(PICTURES)


def test_the_words_nearest_to_a_dense_vector(both: tuple[LexVLA, LexVLA]) -> None:
    for model in both:
        word = model.vocabulary.word(3)
        vectors = model.encode_text([word, "a red hat"]).dense
        assert vectors is not None
        (first, *others), second = model.nearest_words(vectors, top_k=4)
        assert first == (word, pytest.approx(1))
        assert [cosine for _, cosine in others] == sorted((c for _, c in others), reverse=True)
        column = model.vocabulary.find(second[0][0])
        assert column is not None
        (nearest,) = model.encode_text([second[0][0]]).dense
        assert second[0][1] == pytest.approx(float(nearest @ vectors[1]), abs=1e-5)
    own = both[0].encode_text(["a red hat"]).dense
    words = [[word for word, _ in model.nearest_words(own)[0]] for model in both]
    assert words[0] == words[1]


def test_words_regions_patches_and_heat_maps(both: tuple[LexVLA, LexVLA]) -> None:
    mine, yours = both
    words = ["dog", "Red", "two dogs", "xyz"]
    assert_equal(mine.encode_words(words), yours.encode_words(words))
    regions = [(0, 0, 20, 15), (5, 5, 30, 20)]
    assert_equal(
        mine.encode_region(PICTURES[:2], regions), yours.encode_region(PICTURES[:2], regions)
    )
    assert_equal(mine.encode_patches(PICTURES[:2]), yours.encode_patches(PICTURES[:2]))
    np.testing.assert_allclose(
        mine.heatmaps(PICTURES[0], ["dog", 2]), yours.heatmaps(PICTURES[0], ["dog", 2]), rtol=1e-4
    )
    with pytest.raises(KeyError):
        mine.heatmap(PICTURES[0], "xyz")


def test_what_cannot_be_encoded(both: tuple[LexVLA, LexVLA]) -> None:
    mine, _ = both
    with pytest.raises(InputError, match="empty batch"):
        mine.encode_text([])
    with pytest.raises(InputError, match="Unicode"):
        mine.encode_text(["\ud800"])
    with pytest.raises(InputError, match="too small"):
        mine.encode_image([picture(0, (4, 40))])


@pytest.mark.parametrize(
    "options", [{"dense_width": 0, "codebook_size": 0}, {"pool_cls": True}, {"codebook_size": 0}]
)
def test_models_of_other_parts(options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(**options)
    model.save_pretrained(tmp_path)
    export_model(tmp_path, tmp_path)
    mine = LexVLA.from_pretrained(tmp_path)
    assert type(mine) is OnnxLexVLA
    found, expected = mine.encode_image(PICTURES), model.encode_image(PICTURES)
    assert found.patches.tolist() == expected.patches.tolist()
    np.testing.assert_allclose(found.lexical.data, expected.lexical.data, rtol=1e-3)
    assert (found.dense is None, found.codes is None) == (
        expected.dense is None,
        expected.codes is None,
    )


def copy(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to


def test_missing_and_altered_files(folder: Path, tmp_path: Path) -> None:
    broken = copy(folder, tmp_path)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-1] + b"!")
    with pytest.raises(ModelError, match=r"model\.safetensors: the sha256 differs"):
        LexVLA.from_pretrained(broken).encode_text(["dog"])
    (broken / "text.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"text\.onnx: the sha256 differs"):
        LexVLA.from_pretrained(broken).encode_text(["dog"])
    (broken / "text.onnx").unlink()
    with pytest.raises(ModelError, match=r"text\.onnx missing"):
        LexVLA.from_pretrained(broken)


@pytest.mark.parametrize("number", [FORMAT_VERSION - 1, FORMAT_VERSION + 1])
def test_graphs_of_another_format(number: int, folder: Path, tmp_path: Path) -> None:
    other = copy(folder, tmp_path)
    edit_json(other / "config.json", lambda values: values["graphs"].update(format_version=number))
    with pytest.raises(ModelError, match=rf"graphs of format {number}, and this program runs"):
        LexVLA.from_pretrained(other)


def test_texts_in_several_threads_are_those_of_one(both: tuple[LexVLA, LexVLA]) -> None:
    texts = [f"{first} {second}" for first in ("red", "dog", "hat on") for second in "abcdefghijkl"]
    whole = both[0].encode_text(texts * 3)
    assert_equal(whole, both[1].encode_text(texts * 3))
    singly = both[0].encode_text(texts, batch_size=1)
    assert_equal(whole[np.arange(len(texts))], singly)


def test_an_old_onnxruntime_and_an_old_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    from lexvla import onnx_model

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "__version__", "1.19.2")
        with pytest.raises(UnsupportedError, match=r"onnxruntime 1\.19\.2 is too old"):
            LexVLA.from_pretrained(folder).encode_text(["dog"])
    monkeypatch.setattr(onnx_model, "_has_avx", lambda: False)
    monkeypatch.setattr(onnx_model.platform, "machine", lambda: "x86_64")
    with pytest.raises(UnsupportedError, match="no AVX"):
        LexVLA.from_pretrained(folder).encode_text(["dog"])


def test_a_saved_model_has_no_graphs_of_earlier_weights(folder: Path, tmp_path: Path) -> None:
    model = LexVLA.from_pretrained(copy(folder, tmp_path), runtime="torch")
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no ONNX graphs"):
        LexVLA.from_pretrained(tmp_path, runtime="onnx")
    assert not isinstance(LexVLA.from_pretrained(tmp_path), OnnxLexVLA)


def test_which_runtime_is_chosen(folder: Path) -> None:
    assert not isinstance(LexVLA.from_pretrained(folder, dtype="float16"), OnnxLexVLA)
    assert isinstance(LexVLA.from_pretrained(folder, device="cpu"), OnnxLexVLA)
    with pytest.raises(UnsupportedError, match="dtype: only for runtime='torch'"):
        LexVLA.from_pretrained(folder, runtime="onnx", dtype="float16")
    with pytest.raises(ValueError, match="unknown runtime 'tpu'"):
        LexVLA.from_pretrained(folder, runtime="tpu")


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_keys_that_heads_share(kind: str, vision_model: str, tmp_path: Path) -> None:
    from backbone_fakes import save_language_model, small

    text_model = save_language_model(tmp_path / "text", kind)
    model = LexVLA.from_backbones(text_model, vision_model, **small(lora_rank=0))
    model.config.text_model = model.config.vision_model = None
    model.save_pretrained(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "model")
    mine, yours = (
        LexVLA.from_pretrained(tmp_path / "model", runtime=name) for name in ("onnx", "torch")
    )
    found, expected = mine.encode_text(TEXTS).lexical, yours.encode_text(TEXTS).lexical
    assert found.indices.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(found.data, expected.data, rtol=1e-3)


def test_what_cannot_be_exported(text_model: str, vision_model: str, tmp_path: Path) -> None:
    from backbone_fakes import small

    LexVLA.from_backbones(text_model, vision_model, **small()).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"LoRA .* merge_lora=True"):
        export_model(tmp_path, tmp_path / "out")
    edit_json(tmp_path / "config.json", lambda v: v.update(quantization="nf4"))
    with pytest.raises(UnsupportedError, match=r"quantised .* quantization='none'"):
        export_model(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()

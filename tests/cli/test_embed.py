"""embed: the same numbers as lines and as a file, which is there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitral
from tests.helpers import random_model, write_colors, write_digits
from vitral.cli.main import main
from vitral.errors import UserError

Capture = pytest.CaptureFixture[str]


def lines(capsys: Capture, *words: str) -> list[dict[str, Any]]:
    code = main(["embed", *words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def files() -> list[str]:
    random_model(Path("model"))
    return sorted(str(path) for path, _, _ in write_digits(Path("digits"), range(11)))


def test_lines_are_what_the_library_gives(files: list[str], capsys: Capture) -> None:
    rows = lines(capsys, "model", "digits", "batch_size=4")
    assert [row["image"] for row in rows] == files
    assert all(row.keys() == {"image", "embedding"} for row in rows)
    embedded_ND = np.array([row["embedding"] for row in rows], np.float32)
    assert embedded_ND.shape == (11, 16)
    np.testing.assert_allclose(embedded_ND, vitral.load("model").embed(files), atol=1e-5)
    assert embedded_ND.std(axis=0).min() > 1e-3, "images that differ"


def test_the_library_gives_the_encoders_tensors(files: list[str]) -> None:
    predictor = vitral.load("model")
    images_BCHW = torch.stack([predictor.preprocess(path) for path in files])
    with torch.no_grad():
        out = predictor.model.encode(images_BCHW)
        pooled_BD = predictor.model.pool(out)
    found = predictor.embed(files, batch_size=3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, pooled_BD, atol=1e-5)
    np.testing.assert_allclose(predictor.embed(files, "patches", batch_size=3), out.patches_BND, atol=1e-5)
    np.testing.assert_allclose(predictor.embed(files[3]), found[3:4], atol=1e-5)
    with pytest.raises(UserError, match="expected: pooled, cls"):
        predictor.embed(files, "polled")
    with pytest.raises(UserError, match="at least one image"):
        predictor.embed([])


def test_a_file_of_images(files: list[str], capsys: Capture) -> None:
    assert lines(capsys, "model", *files, "out=x.npz") == []
    rows = lines(capsys, "model", *files, "out=x.npz", "overwrite=true", "--json")
    with np.load("x.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {"embeddings", "images"}
        assert arrays["embeddings"].dtype == np.float32
        assert arrays["images"].tolist() == files
        assert arrays["embeddings"].tolist() == [row["embedding"] for row in rows], "bit for bit"
    lines(capsys, "model", *files, "features=patches", "out=patches.npz")
    with np.load("patches.npz", allow_pickle=False) as arrays:
        assert arrays["embeddings"].shape == (11, 16, 16)


def test_a_file_of_data_has_labels_and_splits(capsys: Capture) -> None:
    random_model(Path("model"))
    write_colors(Path("data/train"), "ant bee", count=4)
    write_colors(Path("data/test"), "ant bee", count=2, first=4)
    lines(capsys, "model", "data=data", "out=x.npz")
    with np.load("x.npz", allow_pickle=False) as arrays:
        assert arrays["classes"].tolist() == ["ant", "bee"]
        assert arrays["splits"].tolist() == ["train"] * 8 + ["test"] * 4
        assert arrays["labels"].dtype == np.int64
        for name, label, row_D in zip(arrays["images"], arrays["labels"], arrays["embeddings"], strict=True):
            assert Path(name).parent.name == arrays["classes"][label]
            np.testing.assert_allclose(vitral.load("model").embed(f"data/{name}")[0], row_D, atol=1e-5)
    rows = lines(capsys, "model", "data=data", "split=test")
    assert [(row["split"], row["label"]) for row in rows] == [("test", "ant")] * 2 + [("test", "bee")] * 2


def test_images_of_several_classes(capsys: Capture) -> None:
    random_model(Path("model"))
    write_colors(Path("pets"), "cat", count=3)
    rows = ["path,label", "pets/cat/0.png,cat;dog", "pets/cat/1.png,dog", "pets/cat/2.png,cat"]
    Path("many.csv").write_text("\n".join(rows), encoding="utf-8")
    words = ["model", "data=many.csv", "data.label_separator=;"]
    assert [row["labels"] for row in lines(capsys, *words)] == [["cat", "dog"], ["dog"], ["cat"]]
    lines(capsys, *words, "out=x.npz")
    with np.load("x.npz", allow_pickle=False) as arrays:
        assert arrays["labels"].tolist() == [[True, True], [False, True], [True, False]]


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_embedded(files: list[str], capsys: Capture) -> None:
    good = dict(zip(files, lines(capsys, "model", *files), strict=True))
    Path(files[4]).write_bytes(b"no picture")
    assert main(["embed", "model", *files]) == 2
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["image"] for row in rows] == files
    assert ["error" in row for row in rows] == [path == files[4] for path in files]
    assert f"1 of {len(files)} images cannot be read. Pass max_bad=1" in err
    for row in rows:
        if "error" not in row:
            np.testing.assert_allclose(row["embedding"], good[row["image"]]["embedding"], rtol=1e-4, atol=1e-5)
    for words, code in (([], 2), (["max_bad=1", "overwrite=true"], 0)):
        assert main(["embed", "model", *files, "out=x.npz", *words]) == code
        assert files[4] in capsys.readouterr().err
        with np.load("x.npz", allow_pickle=False) as arrays:
            assert arrays["images"].tolist() == [path for path in files if path != files[4]]
            assert (len(arrays["embeddings"]), arrays["failed"].tolist()) == (len(files) - 1, [files[4]])
            assert files[4] in arrays["errors"][0]
    assert main(["embed", "model", files[4], "out=y.npz"]) == 2
    assert not list(Path().glob("*y.npz*")), "of nothing there is no file"
    assert main(["embed", "model", "data=digits", "max_bad=1"]) == 2
    assert "data.max_bad" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1, 3, 256])
def test_a_damaged_image_of_the_data_does_not_cost_the_others(size: int, capsys: Capture) -> None:
    random_model(Path("model"), ("cat", "dog"))
    write_colors(Path("pets"), count=4)
    words = ["embed", "model", "data=pets", f"batch_size={size}"]
    assert main(words) == 0
    good = {row["image"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    for name in ("pets/cat/0.png", "pets/dog/2.png"):
        Path(name).write_bytes(Path(name).read_bytes()[:40])
    for more, code in (([], 2), (["data.max_bad=1"], 2), (["data.max_bad=2"], 0)):
        assert main([*words, *more]) == code
        out, err = capsys.readouterr()
        rows = [json.loads(line) for line in out.splitlines()]
        assert [row["image"] for row in rows] == list(good)
        assert [row["image"] for row in rows if "error" in row] == ["cat/0.png", "dog/2.png"]
        assert f"2 of {len(good)} images cannot be read" in err
        assert ("Pass data.max_bad=2 to accept" in err) == bool(code)
        for row in rows:
            if "error" not in row:
                found, expected = row, good[row["image"]]
                assert found["label"] == expected["label"]
                np.testing.assert_allclose(found["embedding"], expected["embedding"], rtol=1e-4, atol=1e-5)
    assert main([*words, "out=x.npz"]) == 2
    with np.load("x.npz", allow_pickle=False) as arrays:
        assert arrays["failed"].tolist() == ["cat/0.png", "dog/2.png"]
        assert len(arrays["embeddings"]) == len(arrays["labels"]) == len(good) - 2


def test_predict_answers_the_others_too(files: list[str], capsys: Capture) -> None:
    for path in (files[0], files[4]):
        Path(path).write_bytes(b"no picture")
    for words, code in (([], 2), (["max_bad=1"], 2), (["max_bad=2"], 0)):
        assert main(["predict", "model", *files, "batch_size=2", *words]) == code
        out, err = capsys.readouterr()
        rows = [json.loads(line) for line in out.splitlines()]
        assert [row["image"] for row in rows] == files
        assert [files[n] for n, row in enumerate(rows) if "error" in row] == [files[0], files[4]]
        assert all(len(row["predictions"]) == 3 for row in rows if "error" not in row)
        assert f"2 of {len(files)} images cannot be read" in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "missing argument: MODEL"),
        (["model"], "expected either images or data="),
        (["model", "digits", "data=digits"], "expected either images or data="),
        (["model", "digits", "split=test"], "expected either images or data="),
        (["model", "gone.png"], "gone.png: no such file"),
        (["model", "digits", "out=there.npz"], "overwrite=true"),
        (["model", "digits", "overwrite=true"], "no effect without out"),
        (["model", "digits", "out=x.csv"], "FILE.npz"),
        (["model", "digits", "out=nowhere/x.npz"], "in an existing folder"),
        (["model", "digits", "features=polled"], "did you mean 'pooled'"),
        (["model", "data=digits", "split=test"], "no such split"),
    ],
)
def test_wrong_words_get_one_message(words: list[str], says: str, files: list[str], capsys: Capture) -> None:
    Path("there.npz").write_bytes(b"kept")
    assert main(["embed", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert Path("there.npz").read_bytes() == b"kept"

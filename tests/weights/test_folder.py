"""The model folder: the same model comes back, a failed save harms nothing, damaged and foreign folders are refused."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vitral
from tests.detectors import detector_folder
from tests.helpers import assert_equal_tensors, edit_config, random_model, weights
from tests.training.test_train_state import disk_full_beyond
from vitral.cli.main import main
from vitral.errors import UserError
from vitral.weights.folder import find_folder, load_folder, save_folder
from vitral.weights.tensors import load_tensors, save_tensors


def test_a_saved_model_comes_back_bit_for_bit() -> None:
    path = random_model(Path("deep/model"), head="mlp", pool="avg", gelu="tanh", mean=(0.3,), std=(0.2,))
    model, config = load_folder(str(path))
    assert not model.training
    save_folder(Path("copy"), model, config, "another card\n")
    again, same = load_folder("copy")
    assert same == config
    assert_equal_tensors(weights(path), weights("copy"))
    images_BCHW = torch.rand(4, 1, 8, 8)
    assert torch.equal(model(images_BCHW), again(images_BCHW))
    assert {entry.name for entry in Path("copy").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert Path("copy/README.md").read_text(encoding="utf-8") == "another card\n"


def test_a_folder_is_replaced_as_a_whole() -> None:
    random_model(Path("model"))
    Path("model/notes.txt").touch()
    random_model(Path("model"), ("left", "right"))
    assert load_folder("model")[1].classes == ("left", "right")
    assert [entry.name for entry in Path().iterdir()] == ["model"]
    assert not Path("model/notes.txt").exists()


def fails(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("broken", ["vitral.weights.folder.save_tensors", "pathlib.Path.write_text", "os.replace"])
def test_a_failed_save_leaves_the_older_folder_whole(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model(Path("model"))
    before = {entry.name: entry.read_bytes() for entry in Path("model").iterdir()}
    model, config = load_folder("model")
    torch.nn.init.zeros_(model.get_parameter("head.weight"))
    with monkeypatch.context() as patch:
        patch.setattr(broken, lambda *args, **keys: fails())
        with pytest.raises(OSError, match="No space left"):
            save_folder(Path("model"), model, config, "never written")
    assert {entry.name: entry.read_bytes() for entry in Path("model").iterdir()} == before
    assert [entry.name for entry in Path().iterdir()] == ["model"], "nothing half-written is left"


def test_a_full_disk_leaves_the_older_folder_whole() -> None:
    random_model(Path("model"))
    before = weights("model")
    model, config = load_folder("model")
    torch.nn.init.zeros_(model.get_parameter("head.weight"))
    with disk_full_beyond(10_000), pytest.raises(OSError, match="could not be written"):
        save_folder(Path("model"), model, config, "never written")
    assert_equal_tensors(weights("model"), before)
    assert [entry.name for entry in Path().iterdir()] == ["model"]


def test_a_save_after_a_power_cut_between_the_two_renames_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random_model(Path("model"))
    model, config = load_folder("model")
    Path("model").rename(".model.old")
    with monkeypatch.context() as patch:
        patch.setattr("vitral.weights.folder.save_tensors", fails)
        with pytest.raises(OSError, match="No space left"):
            save_folder(Path("model"), model, config, "never written")
    assert_equal_tensors(weights("model"), model.state_dict())


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edited(folder: Path) -> None:
        edit_config(folder, change)

    return edited


def standardized(mean: list[Any], std: list[Any]) -> Callable[[Path], object]:
    return edit(lambda t: t.update(task="regression", task_state={"mean": mean, "std": std}))


def drop(name: str) -> Callable[[Path], object]:
    def dropped(folder: Path) -> None:
        tensors = dict(weights(folder))
        del tensors[name]
        save_tensors(folder / "model.safetensors", tensors)
        edit_config(folder, lambda _: None)

    return dropped


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: not readable as safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors: not readable as safetensors"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "config.json:1: not UTF-8"),
        (lambda f: (f / "config.json").write_text("{}", encoding="utf-8"), "not a Vitral model folder"),
        (drop("blocks.0.norm1.weight"), r"(?s)another architecture.*1 missing \(blocks\.0\.norm1\.weight\)"),
        (edit(lambda t: t["architecture"].update(width=32, heads=4)), r"(?s)another architecture.*other shape"),
        (edit(lambda t: t["architecture"].update(depth=1)), r"(?s)another architecture.*unexpected \(blocks\.1"),
        (edit(lambda t: t["id2label"].pop("2")), "id2label"),
        (edit(lambda t: t.update(id2label={"0": "cat", "1": "dog", "3": "owl"})), "id2label"),
        (edit(lambda t: t["preprocessing"].update(image_size=[16, 16])), "preprocessing"),
        (edit(lambda t: t["preprocessing"].update(channels=3)), "preprocessing"),
        (edit(lambda t: t.update(temperature=-1)), "temperature"),
        (edit(lambda t: t.update(format="vitral-model-9")), "vitral-model-9"),
        (edit(lambda t: t["architecture"].update(color="red")), "architecture.color: unknown key"),
        (edit(lambda t: t.update(task_state={"mean": 1})), "task_state: mean: unknown key"),
        (edit(lambda t: t.update(task="detection")), "the task detection does not fit an architecture of the family v"),
        (edit(lambda t: t.update(task="regression")), "task_state:\nmean: required"),
        (standardized([1, 2], [1, 1]), r"(?s)task_state.mean: one number for each target.*got: +2\n.*expected: +3"),
        (standardized([1, 2, 3], [1, 1]), "task_state.std: one number"),
        (standardized([1, 2, 3], [1, 0, 1]), r"(?s)task_state: std: .*greater than 0"),
        (standardized([1, 2, "3"], [1, 1, 1]), r"task_state: mean: wrong value"),
    ],
)
def test_damaged_folders_are_refused_by_what_is_wrong(damage: Callable[[Path], object], message: str) -> None:
    folder = random_model(Path("model"))
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_folder("model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_state": {"threshold": "abc"}}, "threshold: wrong value"),
        ({"task_state": {"threshold": 7}}, "1 or less"),
        ({"task_state": {"min_score": -0.1}}, "0 or more"),
        ({"task_state": {"max_iou": -1}}, "0 or more"),
        ({"task_state": {"most": 10**9}}, "1000 or less"),
        ({"task_state": {"most": 0}}, "1 or more"),
        ({"task_state": {"most": 2.5}}, "most: wrong value"),
        ({"task_state": {"color": "red"}}, "color: unknown key"),
        ({"task": "classification", "task_state": {}}, "the task classification does not fit"),
        ({"task": "multilabel", "task_state": {}}, "the task multilabel does not fit"),
    ],
)
def test_thresholds_of_a_foreign_detector_get_one_message(
    changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_config(detector_folder(Path("model")), lambda tree: tree.update(changes))
    Image.new("RGB", (40, 30)).save("image.png")
    assert main(["predict", "model", "image.png"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("error: ") == 1
    assert err.startswith("error: model/config.json: ")
    assert message in err


def test_a_model_is_found_by_its_folder_its_run_or_a_near_name() -> None:
    random_model(Path("runs/mine/model"))
    assert find_folder("runs/mine/model") == find_folder("runs/mine") == Path("runs/mine/model")
    with pytest.raises(UserError, match="did you mean 'runs/mine'"):
        find_folder("runs/mein")
    with pytest.raises(UserError, match="did you mean 'runs'"):
        find_folder("rnus")
    with pytest.raises(UserError, match=r"(?s)config\.json is missing.*when it ends"):
        find_folder("runs")
    with pytest.raises(UserError, match="no such model"):
        find_folder("far/away/from/all")


class Poison:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_a_pickle_is_never_read() -> None:
    folder = random_model(Path("model"))
    for name in ("pytorch_model.bin", "model.pt", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Poison()))
    load_folder("model")
    shutil.copy(folder / "model.pkl", folder / "model.safetensors")
    with pytest.raises(UserError, match="not readable as safetensors"):
        vitral.load("model", verify=False)
    assert not Path("executed").exists()


def test_tensors_keep_type_shape_and_metadata() -> None:
    tensors = {
        "a": torch.rand(2, 3).t(), "b": torch.arange(4), "c": torch.rand(3).bfloat16(), "d": torch.zeros(0, 2)
    }  # fmt: skip
    save_tensors(Path("x.safetensors"), tensors, {"who": "é"})
    found, metadata = load_tensors(Path("x.safetensors"))
    assert_equal_tensors(found, tensors)
    assert all(found[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert metadata == {"who": "é"}


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("how", ["bicubic_antialias", "bicubic", "google"])
def test_a_folder_at_another_size_says_what_encode_says(how: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = random_model(Path("model"))
    own, _ = load_folder(str(path))
    with caplog.at_level("INFO", logger="vitral"):
        larger, config = load_folder(str(path), (12, 10), how)
    assert config.preprocessing.image_size == larger.config.image_size == (12, 10)
    assert "a grid of 4 x 4 to 6 x 5 patches" in caplog.text
    images = torch.rand(2, 1, 12, 10)
    own.config = own.config.model_copy(update={"position_resize": how})
    torch.testing.assert_close(larger.encode(images).patches_BND, own.encode(images).patches_BND)
    same, _ = load_folder(str(path), 8)
    assert_equal_tensors(same.state_dict(), own.state_dict())


def test_whole_numbers_are_no_weights() -> None:
    folder = random_model(Path("model"))
    tensors, _ = load_tensors(folder / "model.safetensors")
    save_tensors(folder / "model.safetensors", {name: tensor.long() for name, tensor in tensors.items()})
    edit_config(folder, lambda tree: None)
    with pytest.raises(UserError, match=rf"{len(tensors)} not floating-point .*int64"):
        load_folder("model")

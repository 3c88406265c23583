"""Nothing is lost: whatever a kill leaves is resumed, or replaced by the same command; a stopped run can be used."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import LEARNS, TINY, random_model, weights, write_colors
from tests.kills import after_each_kill
from vitral.atomic_files import locked
from vitral.cli.main import main
from vitral.data.config import DataConfig
from vitral.data.convert import convert
from vitral.data.loader import StreamLoader
from vitral.data.sources import open_dataset
from vitral.errors import Interrupted, UserError
from vitral.run import sweep as sweeping
from vitral.run.config import RunConfig, load_config
from vitral.run.folder import CHECKPOINTS, claimed, open_folder
from vitral.run.train import run
from vitral.structs import Batch
from vitral.training.metrics_log import MetricsLog
from vitral.training.train_state import has_checkpoint
from vitral.weights.tensors import load_tensors, save_tensors

unix = pytest.mark.skipif(os.name == "nt", reason="needs fork and signals of Unix")


def config(out: Path | str, **more: Any) -> RunConfig:
    keys = {key.replace("__", "."): value for key, value in more.items()}
    return load_config("digits", {**TINY, "out": str(out), **keys})


def stopped_at(step: int, out: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> str:
    """Start a run and stop it at a step; returns what it says."""
    make = StreamLoader.batch

    def batch(self: StreamLoader, at: int) -> Batch:
        if at == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return make(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(StreamLoader, "batch", batch)
        with pytest.raises(Interrupted) as caught:
            run(config(out, **more))
    return str(caught.value)


@unix
def test_an_overwrite_killed_at_any_write_is_resumed_or_overwritten(tmp_path: Path) -> None:
    template, place = tmp_path / "template", tmp_path / "run"
    old = config(place)
    with claimed(old):
        open_folder(place, old, {})
        for name in ("last", "previous", "best"):
            (place / CHECKPOINTS / f"{name}.safetensors").touch()
        for name in ("summary.json", "report.html", "model/config.json", "nonfinite/step-3.npz"):
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).touch()
    place.rename(template)
    new, again = config(place, overwrite=True, seed=1), config(place, resume=True)

    def overwrite() -> None:
        with claimed(new):
            open_folder(place, new, {})

    for _ in after_each_kill(template, place, overwrite):
        assert (place / CHECKPOINTS).is_dir()
        assert (place / "config.yaml").is_file() or not has_checkpoint(place / CHECKPOINTS), "a resume reads both"
        with claimed(again):
            pass
        overwrite()
        assert {path.name for path in place.iterdir()} == {"checkpoints", "config.yaml", "env.json"}
        assert not list((place / CHECKPOINTS).iterdir())


@unix
def test_a_save_killed_at_any_write_leaves_one_whole_file_and_no_litter(tmp_path: Path) -> None:
    old, new = ({"x": torch.full((3,), value)} for value in (1.0, 2.0))
    (tmp_path / "template/checkpoints").mkdir(parents=True)
    save_tensors(tmp_path / "template/checkpoints/last.safetensors", old, checked=True)
    place = tmp_path / "run"
    path = place / "checkpoints/last.safetensors"
    for _ in after_each_kill(tmp_path / "template", place, lambda: save_tensors(path, new, checked=True)):
        assert load_tensors(path, checked=True)[0]["x"][0] in (1, 2)
        (place / "checkpoints/.tmpAbCdEf").touch()  # safetensors' own name, of an older version
        with claimed(config(place, resume=True)):
            assert [entry.name for entry in (place / "checkpoints").iterdir()] == ["last.safetensors"]


@unix
@pytest.mark.parametrize("there", [True, False])
def test_a_conversion_killed_at_any_write_is_whole_or_absent(tmp_path: Path, there: bool) -> None:
    data = open_dataset(DataConfig(path=str(write_colors(tmp_path / "pets", count=2)), source="folder"), hold_out=False)
    template, place = tmp_path / "template", tmp_path / "images"
    if there:
        template.mkdir()

    def work() -> None:
        convert(data, place, "csv", 1)

    for _ in after_each_kill(template, place, work):
        if place.exists() and any(place.iterdir()):
            assert len(list(place.rglob("*.png"))) == 4
            assert len((place / "manifest.csv").read_text(encoding="utf-8").splitlines()) == 5
            continue
        work()
        assert len(list(place.rglob("*.png"))) == 4
        assert not list(tmp_path.glob(".*"))


@unix
def test_a_sweep_replaced_under_kills_stays_a_sweep(tmp_path: Path) -> None:
    template, place = tmp_path / "template", tmp_path / "sweep"
    grid = {"optim.lr": [1e-3, 1e-2]}
    keys = {key: value for key, value in TINY.items() if key != "train.eval_every"}
    sweeping.sweep("digits", grid, keys, retrain=False, out=template)
    before = json.loads((template / "sweep.json").read_text(encoding="utf-8"))
    found = {**before, "points": [{"run": "01"}, {"run": "02"}], "best": None}
    for _ in after_each_kill(template, place, lambda: sweeping._open(place, found, True)):
        for resume in (True, False):
            sweeping._check(place, found, resume, not resume)
        for row in ("01", "02"):
            if (place / row / "summary.json").is_file():
                assert weights(place / row)
        sweeping._open(place, found, True)
        assert {path.name for path in place.iterdir()} == {"sweep.json", "sweep.csv"}


@unix
def test_pictures_half_written_are_replaced(tmp_path: Path) -> None:
    from vitral.run.command_options import ExplainOptions
    from vitral.run.explain import explain

    model = str(random_model(tmp_path / "model"))

    def options(**more: Any) -> ExplainOptions:
        return ExplainOptions(out=str(tmp_path / "seen"), methods=("filters", "positions"), **more)

    for _ in after_each_kill(tmp_path / "nothing", tmp_path / "seen", lambda: explain(model, [], options())):
        if any((tmp_path / "seen").glob("[!.]*")):
            explain(model, [], options(overwrite=True))
        else:
            explain(model, [], options())
        assert not list((tmp_path / "seen").glob(".*"))
        shutil.rmtree(tmp_path / "seen")


def test_a_run_whose_checkpoints_are_gone_is_still_its_own(tmp_path: Path) -> None:
    run(config(tmp_path / "a", train__steps=1))
    shutil.rmtree(tmp_path / "a/checkpoints")
    run(config(tmp_path / "a", train__steps=1, overwrite=True))
    assert (tmp_path / "a/summary.json").is_file()


def test_a_folder_that_is_no_run_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").touch()
    with (
        pytest.raises(UserError, match=r"(?s)no run folder.*config\.yaml, model.*out=DIR"),
        claimed(config(tmp_path, overwrite=True)),
    ):
        pytest.fail("claimed")


@pytest.mark.parametrize("word", ["overwrite", "resume"])
@pytest.mark.parametrize("named", ["run", "stranger"])
def test_files_that_no_run_wrote_stay(word: str, named: str, tmp_path: Path) -> None:
    """A folder of the name `checkpoints` makes no run folder, and in that of a run only its own files go."""
    others = ["checkpoints/resnet50_best.pth", "notes.txt", "checkpoints/.cache.partial"]
    if named == "run":
        run(config(tmp_path, train__steps=1))
        shutil.rmtree(tmp_path / CHECKPOINTS)
    else:
        others += ["model", "checkpoints/best.safetensors"]
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    if named == "run":
        run(config(tmp_path, train__steps=1, **{word: True}))
        assert weights(tmp_path)
    else:
        with pytest.raises(UserError, match=r"(?s)no run folder.*resnet50_best\.pth.*model.*out=DIR"):
            run(config(tmp_path, train__steps=1, **{word: True}))
    assert all((tmp_path / name).read_text(encoding="utf-8") == name for name in others)


def test_a_run_does_not_begin_in_the_folder_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `vitral eval SWEEP` says while the sweep is not done goes on with it."""
    keys = {key: value for key, value in TINY.items() if key != "train.eval_every"} | {"train.steps": 2}
    keys["optim.betas"] = [0.9, 0.99]
    out = tmp_path / "swept"
    sweeping.sweep("digits", {"optim.lr": [1e-3, 1e-2]}, keys, retrain=False, out=out)
    for word in ("overwrite", "resume"):
        with pytest.raises(UserError, match=r"(?s)holds a sweep.*out=DIR"):
            run(config(out, train__steps=1, **{word: True}))
    assert main(["eval", str(out)]) == 2
    assert f"vitral eval {out}/02" in capsys.readouterr().err
    tree = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    (out / "sweep.json").write_text(json.dumps({**tree, "best": None}), encoding="utf-8")
    assert main(["eval", str(out)]) == 2
    line = next(text for text in capsys.readouterr().err.splitlines() if "resume=true" in text).partition("vitral ")[2]
    assert main(shlex.split(line)) == 0
    assert json.loads((out / "sweep.json").read_text(encoding="utf-8"))["command"] == tree["command"]


def test_a_folder_is_claimed_before_torch_is_imported(tmp_path: Path) -> None:
    """A run that has just begun keeps its folder, and one that finds it taken says so at once."""
    code = "import sys; sys.modules['torch'] = None; from vitral.cli.main import main; sys.exit(main(sys.argv[1:]))"
    (tmp_path / "a/checkpoints").mkdir(parents=True)
    words = [sys.executable, "-c", code, "train", "digits", f"out={tmp_path / 'a'}"]
    with locked(tmp_path / "a"):
        found = subprocess.run([*words, "overwrite=true"], capture_output=True, text=True, encoding="utf-8")
    assert (found.returncode, "another run works in this folder" in found.stderr) == (2, True), found.stderr
    found = subprocess.run(words, capture_output=True, text=True, encoding="utf-8")
    assert (found.returncode, "output folder exists and is not empty" in found.stderr) == (2, True), found.stderr


def test_two_sweeps_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitral.atomic_files.PATIENCE", 0.0)
    keys = {key: value for key, value in TINY.items() if key != "train.eval_every"}
    (tmp_path / "a").mkdir()
    for words in ({}, {"overwrite": True}, {"resume": True}):
        with locked(tmp_path / "a"), pytest.raises(UserError, match="another run works"):
            sweeping.sweep("digits", {"optim.lr": [1e-3, 1e-2]}, keys, out=tmp_path / "a", **words)


@pytest.mark.parametrize(
    ("line", "says"), [(-1, "line 4"), (1, "line 2"), (0, "line 1")], ids=["at the end", "inside", "at the start"]
)
@pytest.mark.parametrize("garbage", [b"\xff\xfe\x00garbage\n", b"[1]\n", b'{"epoch": 1}\n', b"\0" * 100 + b"\n"])
def test_damaged_rows_of_metrics_do_not_stop_a_resume(
    line: int, says: str, garbage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"step": %d, "loss": 0.5}\n' % step for step in (1, 2, 3)]
    lines.insert(line if line >= 0 else 3, garbage)
    path.write_bytes(b"".join(lines))
    with MetricsLog(tmp_path, 10, 2) as metrics_log:
        metrics_log.row({"step": 3, "loss": 0.25})
    assert [(row["step"], row["loss"]) for row in MetricsLog.read(tmp_path)] == [(1, 0.5), (2, 0.5), (3, 0.25)]
    assert says in caplog.text
    assert len((tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 4


def test_a_row_of_a_step_gone_by_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n{"step": 1}\n{"step": 5, "val_loss": 1}\n', encoding="utf-8")
    assert [row["step"] for row in MetricsLog.read(tmp_path)] == [5, 5]


@unix
@pytest.mark.parametrize("damage", ["gone", "flipped", "no checksum"])
def test_lost_best_weights_are_replaced_and_said(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a rate of nothing no later validation is better: the best of the start would be asked for at the end."""
    keys = {"train__steps": 6, "train__batch_size": 400, "train__eval_every": 0.1, "optim__lr": 1e-30}
    stopped_at(4, str(tmp_path / "a"), monkeypatch, **keys)
    best = tmp_path / "a/checkpoints/best.safetensors"
    if damage == "gone":
        best.unlink()
    elif damage == "flipped":
        content = bytearray(best.read_bytes())
        content[-100] ^= 1
        best.write_bytes(content)
    else:
        best.write_bytes(best.read_bytes().replace(b'"crc32"', b'"crc33"'))
    summary = run(config(tmp_path / "a", resume=True, **keys))
    assert "The best weights so far" in caplog.text
    assert summary["best_step"] > 3
    best.unlink()  # of the finished run
    caplog.clear()
    again = run(config(tmp_path / "a", resume=True, **keys))
    assert "gets the last weights instead, of step 6" in caplog.text
    assert (again["best_step"], again["val_top1"]) == (6, pytest.approx(summary["val_top1"]))
    assert (tmp_path / "a/model/config.json").is_file()


@unix
def test_a_stopped_run_is_named_and_finished_with_its_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {key.replace(".", "__"): value for key, value in LEARNS.items()} | {"train__eval_every": 0.25}
    stopped_at(60, str(tmp_path / "a"), monkeypatch, **keys)
    out = str(tmp_path / "a")
    assert (tmp_path / "a/split.safetensors").is_file(), "which is no model either"
    write_colors(tmp_path / "pets", count=1)
    image = str(next((tmp_path / "pets").rglob("*.png")))
    for words in (
        ["doctor", out], ["serve", out, "port=0"], ["probe", out, f"data={tmp_path / 'pets'}"], ["push", out, "me/it"],
        ["prune", out, f"data={tmp_path / 'pets'}", f"out={tmp_path / 'p'}"], ["embed", out, image], ["summary", out],
        ["explain", out, image, f"out={tmp_path / 'x'}"], ["export", out, "format=onnx", f"out={tmp_path / 'e'}"],
        ["weights", "inspect", out], ["predict", out, image], ["eval", out],
    ):  # fmt: skip
        assert main(words) == 2, words
        err = capsys.readouterr().err
        assert "this run was stopped at step 60 of 250" in err, words
        assert f"vitral train {out}/config.yaml out={out} resume=true" in err
    assert "from the best weights so far: vitral train" in err
    line = next(text for text in err.splitlines() if "finish=true" in text).partition("vitral ")[2]
    assert "resume=true" not in line
    assert main(shlex.split(line)) == 0
    summary = json.loads((tmp_path / "a/summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 60
    assert 0 < summary["best_step"] <= 60
    best, _ = load_tensors(tmp_path / "a/checkpoints/best.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in weights(tmp_path / "a").items())
    assert main(["eval", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(summary["top1"])
    run(load_config(f"{out}/config.yaml", {"out": out, "resume": True, "train.steps": 61}))
    assert [row["step"] for row in MetricsLog.read(tmp_path / "a")][-1] == 61, "and it can go on all the same"


@unix
def test_a_run_stopped_before_its_first_validation_says_which_weights_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_at(2, str(tmp_path / "a"), monkeypatch, train__steps=4, train__eval_every="end")
    assert main(["eval", str(tmp_path / "a")]) == 2
    assert "from the last weights (none have been validated yet): vitral train" in capsys.readouterr().err


def test_a_run_that_still_works_is_named_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(tmp_path / "a", train__steps=2))
    shutil.rmtree(tmp_path / "a/model")
    with locked(tmp_path / "a"):
        assert main(["eval", str(tmp_path / "a")]) == 2
    assert "still working; its last checkpoint is of step 2 of 2" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "a")]) == 2
    assert "this run was stopped at step 2 of 2" in capsys.readouterr().err
    for path in (tmp_path / "a/checkpoints").iterdir():
        path.unlink()
    assert main(["eval", str(tmp_path / "a")]) == 2
    err = capsys.readouterr().err
    assert ("this run was stopped\n" in err, "finish=true" in err, "resume=true" in err) == (True, False, True)


def test_nothing_to_finish_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to finish"):
        run(config(tmp_path / "a", finish=True))
    with pytest.raises(UserError, match="set out=DIR"):
        load_config("digits", {"finish": True})


@unix
def test_a_run_is_lengthened_and_shortened_on_purpose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A constant rate forgets the length: the run is then the one that was as long from its start."""
    keys = {"train__steps": 6, "optim__schedule": "constant", "train__eval_every": "end", "train__log_every": 1}
    whole = run(config(tmp_path / "whole", **{**keys, "train__steps": 8}))
    stopped_at(4, str(tmp_path / "a"), monkeypatch, **keys)
    found = run(config(tmp_path / "a", **{**keys, "train__steps": 8}, resume=True))
    assert "ends at step 8 now, not at step 6" in caplog.text
    assert (found["steps"], found["loss"]) == (8, whole["loss"])
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "a")[name])
    assert "steps: 8" in (tmp_path / "a/config.yaml").read_text(encoding="utf-8"), "the next resume needs no key"
    with pytest.raises(UserError, match=r"(?s)beyond this step.*8 or more.*finish=true"):
        run(config(tmp_path / "a", **{**keys, "train__steps": 7}, resume=True))
    cosine = {**keys, "optim__schedule": "cosine"}
    stopped_at(4, str(tmp_path / "b"), monkeypatch, **cosine)
    assert run(config(tmp_path / "b", **{**cosine, "train__steps": 5}, resume=True))["steps"] == 5
    assert re.search(r"all schedules are those of 5 steps \(learning rate [\d.e-]+, was [\d.e-]+\)", caplog.text)


def test_the_printed_command_has_the_keys_that_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a"
    run(config(out, train__steps=2))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitral.run.image_run.prepare", stop)
    keys = {"resume": True, "train__steps": 2, "train__save_seconds": 7.0, "check__allow": ["duplicates", "imbalance"]}
    with pytest.raises(Interrupted) as caught:
        run(config(out, **keys))
    line = str(caught.value).splitlines()[-1]
    assert "train.save_seconds=7.0" in line
    assert "check.allow=duplicates,imbalance" in line, "no brackets, which some shells take for patterns"
    again = load_config(shlex.split(line)[2], dict(word.split("=", 1) for word in shlex.split(line)[3:]))
    assert (again.check.allow, again.resume) == (("duplicates", "imbalance"), True)


COMMANDS = {
    "overwrite": "train digits out=run overwrite=true",
    "resume": "train digits out=run resume=true",
    "sweep": "sweep digits optim.lr=1e-3,1e-2 out=swept",
    "convert": "data convert digits out=images",
    "export": "export model format=hf out=exported overwrite=true",
    "prune": "prune model data=pets split=auto out=smaller overwrite=true",
}


@unix
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_forty_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """After each the same command ends well, with resume=true or overwrite=true where it says so."""
    random_model(Path("model"), ("cat", "dog"))
    write_colors(Path("pets"), count=8)
    keys = {key: value for key, value in TINY.items() if key != "train.eval_every"} | {"train.steps": 20}
    tiny = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
    dice, seconds = random.Random(0), dict[str, float]()
    killed = 0
    while killed < 40:
        name = list(COMMANDS)[killed % len(COMMANDS)]
        words = COMMANDS[name].split() + (tiny if name in ("overwrite", "resume", "sweep") else [])
        words += ["train.save_seconds=0"] if name in ("overwrite", "resume") else []
        for made in ("swept", "images"):
            shutil.rmtree(made, ignore_errors=True)
        code, taken = forked(words, dice.uniform(0, seconds[name]) if name in seconds else 1e9)
        if code != -signal.SIGKILL:
            assert code == 0, name
            seconds[name] = min(taken, seconds.get(name, taken))  # the first one is the slowest
        killed += code == -signal.SIGKILL
        if name == "convert" and Path("images").exists():
            assert len(list(Path("images").rglob("*.png"))) == 1797
        else:
            assert ends_well(words), name
        for litter in (".*.partial", ".*.old", ".tmp*", "checkpoints/.*", "*/checkpoints/.*"):
            assert not [path for place in (".", "run", "swept") for path in Path(place).glob(litter)], litter


def forked(words: list[str], kill_after: float) -> tuple[int, float]:
    """A command in a process that needs no time for its imports: its exit code, or minus the signal, and seconds."""
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(1)
            code = main(words)
        finally:
            os._exit(code)
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() - began < kill_after:
        time.sleep(0.002)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended[1]), time.monotonic() - began


def ends_well(words: list[str]) -> bool:
    """Whether the same command does; where it is refused, with resume=true or overwrite=true."""
    others = [word for word in words if word not in ("overwrite=true", "resume=true")]
    return any(main(each) == 0 for each in (words, [*others, "resume=true"], [*others, "overwrite=true"]))

"""What the command line answers to wrong words, wrong data and asks for help: exit codes, messages, speed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers import VITRAL, random_model, write_colors
from vitral.cli.main import COMMANDS, main
from vitral.config import Config, describe
from vitral.config_keys import as_word
from vitral.run.command_options import EmbedOptions, EvalOptions, ExplainOptions, PredictOptions, ProbeOptions
from vitral.run.config import RunConfig, recipes
from vitral.training.metrics_log import log
from vitral.version import __version__

Capture = pytest.CaptureFixture[str]


def refused(argv: str, capsys: Capture, *parts: str) -> str:
    """The command ends with code 2, one message on stderr that has these parts, and leaves the folder as it was."""
    before = sorted(Path.cwd().rglob("*"))
    code = main(argv.split())
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert len(re.findall(r"^error: ", err, re.MULTILINE)) == 1
    for part in parts:
        assert part in err, err
    assert sorted(Path.cwd().rglob("*")) == before, "something was written"
    return err


def test_numbers_have_separators_and_a_unit_of_their_size(capsys: Capture) -> None:
    assert main(["estimate", "digits"]) == 0
    assert re.search(r"computed here +3\.50 MMAC +7\.0 MFLOP", capsys.readouterr().out)
    assert main(["doctor", "vitral-digits"]) == 0
    assert re.search(r"^parameters +\d{3},\d{3}$", capsys.readouterr().out, re.MULTILINE)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "None" not in out
    assert re.search(r"^device_memory_gb +(none|[\d.]+)$", out, re.MULTILINE)


def test_a_path_of_any_length_is_a_short_message(capsys: Capture) -> None:
    for argv in (f"train digits out={'x/' * 2500}y", f"export vitral-digits format=hf out={'x' * 5000}"):
        err = refused(argv, capsys, "File name too long")
        assert "Errno" not in err
        assert len(err) < 2200


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ("trian digits", ("trian: unknown command", "did you mean 'train'?", "expected: train, sweep")),
        ("train digitz", ("digitz: unknown recipe", "did you mean 'digits'?", "finetune")),
        ("train nowhere.yaml", ("nowhere.yaml: no such file",)),
        ("train digits finetune", ("one recipe at a time",)),
        ("train digits optim.lrr=1", ("optim.lrr: unknown key", "did you mean 'optim.lr'?")),
        ("train digits lr=1", ("lr: unknown key", "did you mean 'optim.lr'?")),
        ("train digits batchsize=1", ("did you mean 'train.batch_size'?",)),
        ("train digits seed=one", ("seed: wrong value", "'one'", "whole number")),
        ("train digits train.batch_size=2.5", ("train.batch_size", "2.5", "whole number")),
        ("train digits report=yes", ("report", "'yes'", "true | false")),
        ("train digits optim.name=adamm", ("optim.name", "did you mean 'adam'?")),
        ("train digits optim.lr=-0.1", ("optim.lr: wrong value", "-0.1", "greater than 0")),
        ("train digits optim.lr=0", ("optim.lr", "greater than 0")),
        ("train digits optim.lr=nan", ("optim.lr", "nan", "number")),
        ("train digits optim.lr=.nan", ("optim.lr", "nan", "finite")),
        ("train digits optim.lr=.inf", ("optim.lr", "finite")),
        ("train digits optim.lr=1 optim.lr=2", ("optim.lr: given twice on the command line", "1 and 2")),
        ("train digits --optim.lr 3e-4", ("--optim.lr: unknown option", "key=value", "optim.lr=3e-4")),
        ("train digits --optim.lr=3e-4", ("unknown option", "key=value", "optim.lr=3e-4")),
        ("train --data PHOTOS", ("--data: unknown option", "key=value: data=PHOTOS")),
        ("train --epochs", ("key=value: epochs=VALUE",)),
        ("train", ("missing argument: a recipe or images", "vitral train digits", "vitral train PHOTOS")),
        ("train digits batch=8", ("batch: unknown key", "did you mean 'train.batch_size'?")),
        ("train digits imgsz=32", ("did you mean 'data.image_size'?",)),
        ("train digits pretrained=true", ("did you mean 'init'?", "model to start from")),
        ("train digits epochs=3", ("did you mean 'train.epochs'?",)),
        ("train digits lr0=1", ("did you mean 'optim.lr'?",)),
        ("train digits model=vit_small_patch16_224", ("model: a group of keys", "'model.name=vit_small_patch16_224'")),
        ("train digits optim=adamw", ("optim: a group of keys", "did you mean 'optim.name=adamw'?")),
        ("train digits augment=randaugment", ("did you mean 'augment.policy=randaugment'?",)),
        ("train digits augment=strong", ("Its keys: augment.crop, ",)),
        ("eval nowhere imgsz=8", ("did you mean 'image_size'?",)),
        ("eval nowhere batch=8", ("did you mean 'batch_size'?",)),
        ("export nowhere", ("format: required, but not given", "hf | timm | onnx | pt2 | openvino")),
        ("check photos", ("check: unknown command", "Use: vitral data check")),
        ("val nowhere", ("Use: vitral eval",)),
        ("train digits --help nonsense", ("nonsense: no key matches",)),
        ("docs servin", ("servin: unknown page", "did you mean 'serving'?")),
        ("train digits --jsn", ("--jsn", "did you mean '--json'?")),
        ("train digits data.image_size=9", ("9 x 9", "patch_size 2", "nearest: 8 x 8")),
        ("train digits model.patch_size=3", ("8 x 8", "patch_size 3", "nearest: 9 x 9")),
        ("train digits model.name=vit_mikro_patch2_8", ("unknown model", "did you mean 'vit_micro_patch2_8'?")),
        ("train digits model.heads=7", ("64", "7 heads")),
        ("train small data=nowhere", ("no such folder", "nowhere")),
        ("train small", ("no data is named", "data=DIR")),
        ("train small data.source=folder", ("data.path", "needs a folder")),
        ("train digits data.source=digits data.path=elsewhere", ("digits are built in", "elsewhere")),
        ("train finetune data=digits", ("init",)),
        ("train finetune data=digits init=vit_small_patch16_224", ("a preset, an architecture without weights",)),
        ("train digits init=nowhere", ("no such model", "nowhere")),
        ("train digits resume=true", ("resume=true needs out=DIR",)),
        ("train digits out=a resume=true overwrite=true", ("contradict",)),
        ("train digits device=gpu", ("device: no such device", "gpu")),
        ("train digits device=mps", ("not supported", "mps")),
        ("eval", ("missing argument: MODEL", "usage: vitral eval MODEL [key=value")),
        ("eval nowhere", ("no such model", "nowhere")),
        ("eval a b", ("unexpected argument: b", "usage: vitral eval MODEL")),
        ("probe", ("missing argument: MODEL",)),
        ("probe nowhere k=5", ("k: unknown key", "did you mean 'knn.k'?")),
        ("probe nowhere kind=linear knn.k=5", ("knn.*", "kind=linear")),
        ("probe nowhere knn.k=0", ("knn.k", "1 or more")),
        ("probe nowhere linear.l2=[] kind=linear", ("linear.l2", "1 or more values")),
        ("predict nowhere", ("missing argument: IMAGE|FOLDER...",)),
        ("plan digits", ("plan: unknown command", "vitral estimate RECIPE, or vitral summary MODEL")),
        ("summary digits", ("a recipe, not a model", "vitral estimate digits")),
        ("summary vit_tiny_patch16_225", ("did you mean 'vit_tiny_patch16_224'?",)),
        ("summary nowhere", ("no such model", "nowhere")),
        ("estimate vit_tiny_patch16_224", ("a model, not a recipe", "vitral summary vit_tiny_patch16_224")),
        ("estimate", ("missing argument: RECIPE",)),
        ("data chek x", ("unknown subcommand", "did you mean 'check'?")),
        ("reproduce positions extra", ("unexpected argument: extra",)),
        ("predict nowhere gone.png", ("gone.png: no such file",)),
        ("predict a b.png topk=0", ("topk: wrong value", "1 or more")),
        ("predict a b.png topks=1", ("topks: unknown key", "did you mean 'topk'?")),
        ("models a b", ("unexpected argument: b", "usage: vitral models [PATTERN]")),
        ("models a=b", ("a: unknown key",)),
        ("models *gigantesque*", ("no preset matches",)),
        ("recipes digitz", ("unknown recipe", "did you mean 'digits'?")),
        ("doctor digits", ("no such model", "vitral-digits")),
        ("doctor accept=true", ("requires a model folder",)),
        ("doctor a b", ("unexpected argument: b",)),
    ],
)  # fmt: skip
def test_wrong_words_get_one_message(argv: str, parts: tuple[str, ...], capsys: Capture) -> None:
    refused(argv, capsys, *parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
@pytest.mark.parametrize(
    "command",
    [
        "train digits",
        "eval model",
        "probe model",
        "predict model cat.png",
        "embed model cat.png",
        "explain model cat.png out=seen",
    ],
)
def test_cuda_asked_for_and_absent(command: str, capsys: Capture) -> None:
    random_model(Path("model"))
    Path("cat.png").touch()
    refused(f"{command} device=cuda", capsys, "device: this device is not there", "cuda", "vitral doctor")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optim:\n  lr: 1e-3\n  lr: 2e-3\n", ("mine.yaml:3", "'lr' appears twice")),
        ("optim: [1,\nseed: 3\n", ("mine.yaml:3", "not readable as YAML")),
        ("- digits\n", ("mine.yaml", "a mapping")),
        ("model:\n  name: vit_micro_patch2_8\noptim:\n  lr: fast\n", ("optim.lr", "'fast'", "number")),
        ("optim: 3\nmodel:\n  name: vit_micro_patch2_8\n", ("optim",)),
        ("", ("init=MODEL", "or model.name=PRESET is needed")),
    ],
)
def test_wrong_files_get_one_message(text: str, parts: tuple[str, ...], capsys: Capture) -> None:
    Path("mine.yaml").write_text(text, encoding="utf-8")
    refused("train mine.yaml data=digits" if text else "train mine.yaml", capsys, *parts)


def test_wrong_folders_get_one_message(capsys: Capture) -> None:
    Path("empty").mkdir()
    refused("train small data=empty", capsys, "no images here", "empty", "DIR/<class>/")
    write_colors(Path("one"), "cat")
    refused("train small data=one", capsys, "one-class", "only one class", "cat")
    write_colors(Path("both/train"))
    write_colors(Path("both/val"), "cat dgo", first=4)
    refused("train small data=both", capsys, "split-classes", "train has none of dgo", "val has none of dog")
    Path("photo.zip").touch()
    refused("train small data=photo.zip", capsys, "this is a file", "Unpack it")
    write_colors(Path("cats"))
    refused("train small data=cast", capsys, "no such folder", "did you mean 'cats'?")


@pytest.mark.parametrize("content", [b"", b"no picture at all", None])
def test_an_unreadable_image_is_named(content: bytes | None, capsys: Capture) -> None:
    bad = write_colors(Path("photos")) / "dog" / "2.png"
    bad.write_bytes(bad.read_bytes()[:40] if content is None else content)
    refused("train small data=photos out=run", capsys, "photos: ", "dog/2.png", "data.max_bad=1")
    random_model(Path("model"), ("cat", "dog"))
    refused("eval model data=photos", capsys, "photos/dog/2.png")
    assert main(["predict", "model", "photos/dog/2.png"]) == 2
    out, err = capsys.readouterr()
    line = json.loads(out)
    assert (line["image"], err) == ("photos/dog/2.png", f"error: {line['error']}\n")
    assert "photos/dog/2.png" in err


def test_init_of_another_architecture(capsys: Capture) -> None:
    random_model(Path("model"))
    refused(
        "train finetune data=digits init=model model.name=vit_nano_patch4_32", capsys,
        "model: the weights belong to another architecture", "48 missing", "blocks.2", "model.name=auto",
    )  # fmt: skip
    refused("train finetune data=digits init=model model.patch_size=3", capsys, "not a multiple of patch_size 3")
    refused("train finetune data=digits init=model model.width=32", capsys, "another architecture", "other shape")


def test_a_run_folder_that_is_not_empty(capsys: Capture) -> None:
    Path("run").mkdir()
    Path("run/thesis.tex").touch()
    refused("train digits out=run", capsys, "not empty", "resume=true", "overwrite=true")
    refused("train digits out=run/thesis.tex", capsys, "is a file")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder here that even the administrator cannot write")
def test_a_folder_that_cannot_be_written(capsys: Capture) -> None:
    refused("train digits out=/proc/run", capsys, "out: the run folder cannot be written", "/proc")


def test_damaged_and_foreign_model_folders(capsys: Capture) -> None:
    folder, image = random_model(Path("model")), "cat.png"
    Path(image).touch()
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(f"predict model {image}", capsys, "model.safetensors: not readable as safetensors")
    refused("eval model", capsys, "model.safetensors: not readable as safetensors")
    refused("train finetune data=digits init=model", capsys, "model.safetensors: not readable as safetensors")
    file.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["digests"]
    for text, part in (
        ('{"format": "vitral-model-9"}', "not a Vitral model folder"),
        ("[]", "not a Vitral model folder"),
        ("{", "not readable"),
        (json.dumps({**config, "id2label": {"0": "cat", "2": "dog", "1x": "owl"}}), "id2label"),
        (json.dumps({**config, "surprise": 1}), "unknown key"),
        (json.dumps({**config, "id2label": {"0": "cat", "1": "cat", "2": "owl"}}), "two classes have one name"),
    ):
        (folder / "config.json").write_text(text, encoding="utf-8")
        refused(f"predict model {image}", capsys, "config.json", part)
    Path("run").mkdir()
    refused("predict run cat.png", capsys, "config.json is missing", "when it ends")


def test_debug_shows_where_it_came_from() -> None:
    with pytest.raises(ValueError, match="unknown recipe"):
        main(["train", "digitz", "--debug"])


def test_no_words_is_wrong_usage_and_help_is_not(capsys: Capture) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert (out, "usage: vitral COMMAND" in err) == ("", True)
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(re.search(rf"^  {command} +{summary}$", out, re.MULTILINE) for command, summary in COMMANDS.items())
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vitral {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: Capture) -> None:
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: vitral {command}")
    assert err == ""
    assert len(out.splitlines()) > 3
    if command != "doctor":
        assert f"  vitral {command}" in out.partition("examples:")[2]


@pytest.mark.parametrize("width", [50, 80, 100])
@pytest.mark.parametrize("command", [*COMMANDS, "train --help all", "data check", "data stats", "data convert", ""])
def test_help_fits_the_terminal(command: str, width: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([*command.split(), "--help"]) == 0
    wide = [line for line in capsys.readouterr().out.splitlines() if len(line) > width and len(line.split()) > 1]
    assert wide == []


@pytest.mark.parametrize(
    ("command", "model"),
    [
        ("train --help all", RunConfig), ("eval", EvalOptions), ("probe", ProbeOptions), ("predict", PredictOptions),
        ("embed", EmbedOptions), ("explain", ExplainOptions),
    ],
)  # fmt: skip
def test_help_shows_every_key_with_type_default_and_meaning(command: str, model: type[Config], capsys: Capture) -> None:
    main([*command.split(), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for key in describe(model):
        default = "" if key.default == "required" else f"={as_word(key.default)}"
        meaning = " ".join(key.help.split())
        assert f"{key.name}{default} {meaning} ({key.type_text}" in text
        assert key.help


def test_help_of_train_shows_the_most_used_keys_first_and_names_all(capsys: Capture) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 175
    assert (
        out.index("  data.path=null") < out.index("  optim.lr=0.001") < out.index("  optim.\n    name lr weight_decay")
    )
    listed = set(out.partition("all keys, by group")[2].split())
    assert {key.name.rpartition(".")[2] for key in describe(RunConfig)} <= listed


@pytest.mark.parametrize(
    ("words", "there", "absent"),
    [
        ("train --help optim", "  optim.betas=0.9,0.999", "train.epochs"),
        ("help train optim", "  optim.betas=0.9,0.999", "train.epochs"),
        ("train --help warm-up", "  optim.warmup=0.05", "optim.betas"),
        ("train digits --help optim.lr", "  optim.lr=0.003", "optim.betas"),
        ("eval --help top1", "  min_top1=null", "batch_size"),
    ],
)
def test_a_word_picks_keys_of_the_help(words: str, there: str, absent: str, capsys: Capture) -> None:
    assert main(words.split()) == 0
    out = capsys.readouterr().out
    assert there in out
    assert absent not in out


def test_help_of_a_recipe_shows_its_values(capsys: Capture) -> None:
    assert main(["train", "digits", "--help"]) == 0
    out = capsys.readouterr().out
    assert "values in digits" in out
    assert re.search(r"^  model\.name=vit_micro_patch2_8$", out, re.MULTILINE)


def test_help_and_version_are_commands_too(capsys: Capture) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"vitral {__version__}\n"
    assert main(["help", "eval"]) == 0
    assert capsys.readouterr().out.startswith("usage: vitral eval")
    assert main(["help"]) == 0
    assert "usage: vitral COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("other", [[], ["small"]])
def test_a_folder_in_place_of_a_key_is_the_data(other: list[str], capsys: Capture) -> None:
    write_colors(Path("photos"), "cat")
    refused(" ".join(["train", *other, "photos"]), capsys, "photos: the data have errors", "one-class")
    refused("train photos data=elsewhere", capsys, "one path of data at a time", "photos data=elsewhere")
    refused("train photos/cat photos", capsys, "one path of data at a time")
    refused("sweep photos optim.lr=1,2", capsys, "only one class")


def test_names_of_files_that_look_like_keys_and_options(capsys: Capture) -> None:
    random_model(Path("model"))
    for name in ("photo=w200.png", "-1.png"):
        Image.new("RGB", (8, 8), (9, 99, 200)).save(name)
        refused(f"predict model {name}", capsys, f"./{name}")
        refused(f"predict model -- {name} gone.png", capsys, "gone.png: no such file")
        for words in (["--", name], [f"./{name}"]):
            assert main(["predict", "model", *words]) == 0
            assert json.loads(capsys.readouterr().out)["image"] == name
    refused("predict model ./-1.png photo=w200.png", capsys, "photo: unknown key", "./photo=w200.png")


def test_docs_lists_and_prints_pages(capsys: Capture) -> None:
    assert main(["docs"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    folder = Path(__file__).parents[2] / "docs"
    assert listed == {path.stem for path in folder.glob("*.md")}
    for name in ("serving", "docs/serving.md"):
        assert main(["docs", name]) == 0
        assert capsys.readouterr().out == (folder / "serving.md").read_text(encoding="utf-8")


def test_messages_and_help_name_pages_that_are_there() -> None:
    root = Path(__file__).parents[2]
    for path in (root / "src/vitral").rglob("*.py"):
        for name in re.findall(r"vitral docs ([a-z-]+)", path.read_text(encoding="utf-8")):
            assert (root / f"docs/{name}.md").is_file(), f"{path} names {name}"


def seconds(words: list[str]) -> float:
    """The best of three: the machine may be busy."""
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([*VITRAL, *words], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize(("words", "limit"), [("--help", 0.5), ("train --help", 2.0), ("models", 2.0)])
def test_help_is_fast(words: str, limit: float) -> None:
    assert seconds(words.split()) < limit


@pytest.mark.parametrize("words", ["--help", "--version", "train --help", "train digitz", "models", "recipes digits"])
def test_help_and_messages_do_not_import_torch(words: str) -> None:
    code = f"import sys; from vitral.cli.main import main; main({words.split()!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_models_lists_presets_smallest_first(capsys: Capture) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.search(
        r"^vit_base_patch16_224 +224 +16 +768 +12 +12 +86,567,656 +17.56 +1000$", "\n".join(lines), re.MULTILINE
    )
    assert main(["models", "*tiny*", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in found} == {line.split()[0] for line in lines if "_tiny" in line}
    tiny = next(row for row in found if row["name"] == "vit_tiny_patch16_224")
    assert (tiny["parameters"], tiny["width"], tiny["image_size"]) == (5_717_416, 192, [224, 224])


def test_recipes_lists_them_and_prints_the_file_itself(capsys: Capture) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == sorted(recipes())
    assert main(["recipes", "digits"]) == 0
    assert capsys.readouterr().out == recipes()["digits"].read_text(encoding="utf-8")
    assert main(["recipes", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == sorted(recipes())
    assert all(row["summary"] in out for row in rows)


def test_doctor_says_what_a_bug_report_needs(capsys: Capture) -> None:
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["vitral"] == __version__
    assert facts["versions"]["torch"] == str(torch.__version__)
    assert facts["processor_cores"] == os.cpu_count()
    assert facts["train_step_ms"] > 0
    assert main(["doctor"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(facts)


@pytest.mark.skipif(os.name == "nt", reason="pipes of a Unix shell")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_stops_reading_is_no_error(unbuffered: str) -> None:
    command = f"({' '.join(VITRAL)} models; echo $? >&2) | true"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, encoding="utf-8",
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    assert done.stderr == "0\n"


def test_control_characters_of_names_never_reach_the_terminal(capsys: Capture) -> None:
    """Of class names, file names, messages and the log; JSON says the same by its own escapes."""
    evil = "\x1b]0;title\x07 \x9b31m \x7f\u202e"
    random_model(Path("model"), (evil, "dog", "owl"))
    Image.new("L", (8, 8)).save("cat.png")
    assert main(["predict", "model", "cat.png"]) == 0
    out, _ = capsys.readouterr()
    assert evil in [row["label"] for row in json.loads(out)["predictions"]]
    assert main(["predict", "model", f"no{evil}.png"]) == 2
    assert main(["weights", "inspect", f"{evil}.pth"]) == 2
    log.warning("a name: %s", evil)
    shown = out + "".join(capsys.readouterr())
    assert "\\u001b]0;title" in shown
    assert not re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown)

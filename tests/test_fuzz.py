"""Every reader, given files that are nearly right: each file is read or gets a UserError, within seconds.

A case is a file of one kind with flipped bits, a cut end, repeated, spliced or deeply nested parts and strange values.
The kind and the seed of its changes tell it, so that it can be tried again alone.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers import random_model, shape_image
from tests.models.text_models import save, text_writer
from vitral.cli.main import main
from vitral.config import dump_yaml
from vitral.data.config import DataConfig
from vitral.data.decode import decode, header, pixels
from vitral.data.jpeg_crop import crop_jpeg, open_jpeg
from vitral.data.sources import open_dataset
from vitral.data.text.config import TextSource
from vitral.data.text.sources import open_text
from vitral.data.text.tokenizer import Characters, Words
from vitral.data.text.tokenizer_file import Tokenizers, load_tokenizers
from vitral.errors import UserError
from vitral.models.search_config import SearchConfig
from vitral.run.config import load_config, recipe_values
from vitral.run.text_eval import open_data
from vitral.run.text_options import TextEvalOptions
from vitral.text_predictor import TextPredictor, load_text
from vitral.weights.convert import read_external
from vitral.weights.find_model import load_model
from vitral.weights.keymap import load_map
from vitral.weights.read_files import read

LONGEST = 20  # seconds of processor time for one file; nearly all take milliseconds
IMAGES = ("png", "jpg", "gif", "webp", "tif", "bmp")
MAP = """rules:
  - {from: "encoder.{i}.ln1.{end}", to: "blocks.{i}.norm1.{end}"}
  - {from: ["encoder.{i}.q.{end}", "encoder.{i+1:02}.k.{end}"], to: "blocks.{i}.attn.qkv.{end}", op: merge}
  - {from: ["cls", "positions[0:1]"], to: cls_token, op: add}
  - {from: "decoder.{rest:[12]+}", to: null}
architecture: {heads: 6, norm_eps: 1.0e-5}
preprocessing: {mean: [0.5], std: [0.5], resize_mode: crop, interpolation: bicubic, crop_pct: 0.875}
"""
# What is put where something else was: numbers, nesting, tags and signs that readers take for more than text.
STRANGE = (
    b"", b"0", b"-1", b"1e309", b"NaN", b"null", b"true", b"9" * 5000, b"1" + b"0" * 30, b"[" * 20_000, b"{" * 20_000,
    b'{"a":' * 5000, b"[]," * 5000, b"\x00", b"\xff" * 8, b"\x7f\xff\xff\xff", b"\n", b'"', b"\\", b"\x1b[31m", b"..",
    b"!!int x", b"!!timestamp 2020-99-99", b"&a [*a, *a]", b"*a", b"<<: ", b"? ", b": ", b"- ", b"\t", b"\r", b"|",
    b",", b"'", b"#", b"%", b"\xc3", b"\xed\xb3\xa9", b"PK\x05\x06", b"PK\x01\x02", b"\x80\x02", b"h\x00", b"q\x00",
    b"\x85", b"\x86", b"R", b".", b"cos\nsystem\n", b"r\xff\xff\xff\x7f", b"{i:(a+)+}", b"/dev/zero",
    b"[999999999999:]",
)  # fmt: skip

VALUES = (
    None, True, False, 0, -1, 1, 2, 3, 7, 10**6, 10**12, 2**63 - 1, 10**30, 0.0, -0.5, 1e-9, 1e300, "", "x", "9" * 3000,
    "a\nb", "\ud800", [], [[]], [0], [1, 2], [-1, -1], [10**9, 10**9], [None], ["x", "x"], {}, {"0": "x"}, {"a": {}},
    float("nan"), float("inf"), "gelu", "bicubic", "crop", "float16",
)  # fmt: skip


class Kind(NamedTuple):
    """Files of one kind: which one of them is changed, and what reads them."""

    file: Path
    read: Callable[[], object]


class Kinds(NamedTuple):
    """All kinds, and the unchanged contents of their files."""

    of: dict[str, Kind]
    whole: dict[str, bytes]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    root = tmp_path_factory.mktemp("fuzz")
    found = {**_models(root), **_writer(root), **_texts(root), **_images(root)}
    for kind in found.values():  # unchanged files are read
        kind.read()
    return Kinds(found, {name: kind.file.read_bytes() for name, kind in found.items()})


def _models(root: Path) -> dict[str, Kind]:
    """Our model folder, one of transformers, and files of weights."""
    folder = random_model(root / "model", preset="vit_tiny_patch16_224", in_channels=3, image_size=32)
    assert main(["export", str(folder), "format=hf", f"out={root / 'hf'}"]) == 0
    timm = root / "timm"
    assert main(["export", str(folder), "format=timm", f"out={timm}"]) == 0
    state = load_model(str(folder))[0].state_dict()
    torch.save({"state_dict": state, "epoch": 3, "losses": [0.5, (1, None)]}, root / "a.pth")
    torch.save(state, root / "b.pth", _use_new_zipfile_serialization=False)
    np.savez(root / "c.npz", allow_pickle=False, **{name: tensor.numpy() for name, tensor in state.items()})
    np.savez_compressed(root / "d.npz", allow_pickle=False, a=np.ones((30, 30), np.float32))
    shutil.copy(folder / "model.safetensors", root / "e.safetensors")
    kinds = {
        path.name: Kind(path, partial(read, path)) for path in (root / f"{n}" for n in ("a.pth", "b.pth", "c.npz"))
    }
    for name in ("d.npz", "e.safetensors"):
        kinds[name] = Kind(root / name, partial(read, root / name))
    for name in ("config.json", "model.safetensors"):
        kinds[f"model/{name}"] = Kind(folder / name, partial(load_model, str(folder)))
        kinds[f"timm/{name}"] = Kind(timm / name, partial(read_external, timm))
    for name in ("config.json", "preprocessor_config.json"):
        kinds[f"hf/{name}"] = Kind(root / "hf" / name, partial(read_external, root / "hf"))
    return kinds


def _writer(root: Path) -> dict[str, Kind]:
    """A folder of a model that writes text, without digests."""
    predictor, folder = text_writer("transformer_tiny", width=8, mlp_dim=8, heads=2), root / "writer"
    data = {"source": "reverse", "count": 16, "symbols": 5, "lengths": [3, 5]}
    config = predictor.config.model_copy(update={"provenance": {"data": data}})
    save(TextPredictor(predictor.model, config, predictor.tokenizers), folder)
    tree = json.loads((folder / "config.json").read_bytes())
    del tree["digests"]
    (folder / "config.json").write_text(json.dumps(tree), encoding="utf-8")
    names = ("config.json", "tokenizer.json", "model.safetensors")
    return {f"writer/{name}": Kind(folder / name, partial(_write, folder)) for name in names}


def _write(folder: Path) -> None:
    """All that is read of a folder on the way to texts and to their evaluation."""
    predictor = load_text(folder, "cpu")
    for search in (None, SearchConfig(search="beam", beams=2)):
        list(predictor.predict(["abc", "e"], search))
    open_data(predictor, TextEvalOptions())


def _texts(root: Path) -> dict[str, Kind]:
    """Recipes, descriptions of data, maps, manifests, text pairs and tokenizers."""
    data = root / "data"
    for label in ("circle", "cross"):
        (data / label).mkdir(parents=True)
        for number in range(4):
            shape_image(label, number, gray=True).save(data / label / f"{number}.png")
    recipe, described, rules = root / "recipe.yaml", root / "data.yaml", root / "map.yaml"
    tree: dict[str, Any] = {}
    for key, value in recipe_values("digits").items():
        *groups, last = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    recipe.write_text(dump_yaml(tree), encoding="utf-8")
    described.write_text("source: folder\npath: data\nclasses: [cross, circle]\n", encoding="utf-8")
    rules.write_text(MAP, encoding="utf-8")
    names = [(f"data/{label}/{number}.png", label) for label in ("circle", "cross") for number in range(4)]
    table, lines = root / "table.csv", root / "lines.jsonl"
    table.write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in names), encoding="utf-8")
    rows = [f'{{"path": "{name}", "labels": ["{label}", "any"]}}\n' for name, label in names]
    pairs, spoken = root / "pairs.tsv", root / "spoken.dict"
    pairs.write_text("source\ttarget\n" + "".join(f"Satz {n}\tline {n}\n" for n in range(20)), encoding="utf-8")
    spoken.write_text("".join(f"{sign}b {sign.upper()}1 B\n" for sign in "abcdefghijklmn"), encoding="utf-8")
    Tokenizers(Characters(["a", "é", "\u2028"]), Words(["K", "AE"])).save(root)
    lines.write_text("".join(rows), encoding="utf-8")
    read_data = {path.name: Kind(path, partial(_open_data, path)) for path in (described, table, lines)}
    return {
        **read_data,
        "tokenizer.json": Kind(root / "tokenizer.json", partial(load_tokenizers, root)),
        "pairs.tsv": Kind(pairs, partial(open_text, TextSource(path=str(pairs)))),
        "spoken.dict": Kind(spoken, partial(open_text, TextSource(source="pronounce", path=str(spoken)))),
        "recipe.yaml": Kind(recipe, partial(load_config, str(recipe), {})),
        "map.yaml": Kind(rules, partial(load_map, str(rules))),
    }


def _open_data(path: Path) -> None:
    dataset = open_dataset(DataConfig(path=str(path)), equal_classes=False)
    for split in dataset.splits.values():
        assert "\n" not in "".join((*dataset.classes, *split.names))


def _images(root: Path) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for ending in IMAGES:
        path = root / f"image.{ending}"
        shape_image("cross", 3).save(path)
        kinds[path.name] = Kind(path, partial(_decode, path))
    path = root / "alpha.png"
    Image.fromarray(np.arange(20 * 20 * 4, dtype=np.uint8).reshape(20, 20, 4)).save(path)
    kinds[path.name] = Kind(path, partial(_decode, path))
    return kinds


def _decode(path: Path) -> None:
    decode(path, 3)
    header(path)
    pixels(path.read_bytes())
    try:
        jpeg = open_jpeg(path)
        if jpeg is not None:
            crop_jpeg(jpeg, [(0, 0, min(9, jpeg.height), min(9, jpeg.width))], [(8, 8)], 3)
    except (OSError, SyntaxError, ValueError, IndexError):  # Pillow's, as it says; the reader then decodes the whole
        pass


def changed(content: bytes, seed: int) -> bytes:
    """The content with a few changes. Of JSON, half of the cases are JSON still, with other values in it."""
    draw = random.Random(seed)
    if content.startswith(b"{") and content.count(b"\n{") == 0 and draw.random() < 0.5:
        tree = json.loads(content)
        for _ in range(draw.choice((1, 1, 2, 5))):
            _other_value(tree, draw)
        return json.dumps(tree).encode()
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        # Headers and ends matter most, and are the least of a file.
        place = draw.choice((draw.randrange(len(data) + 1), draw.randrange(min(len(data), 400) + 1)))
        place = len(data) - place if draw.random() < 0.15 else place
        what = draw.randrange(7)
        if what == 0 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif what == 1:
            del data[place:]
        elif what == 2:
            data[place:place] = draw.choice(STRANGE)
        elif what == 3:
            strange = draw.choice(STRANGE)
            data[place : place + max(1, len(strange))] = strange
        elif what == 4:
            data[place:place] = data[place : place + draw.randrange(1, 200)] * draw.choice((1, 2, 50))
        elif what == 5:
            del data[place : place + draw.randrange(1, 40)]
        else:
            _strange_value(data, draw)
    return bytes(data)


def _strange_value(data: bytearray, draw: random.Random) -> None:
    """Something else behind a colon, as in JSON and YAML."""
    colons = [place for place, sign in enumerate(data[:100_000]) if sign == ord(":")]
    if colons:
        place = draw.choice(colons) + 1
        end = min((found for sign in b",}\n" if (found := data.find(sign, place)) >= 0), default=len(data))
        data[place:end] = b" " + draw.choice(STRANGE)


def _other_value(tree: Any, draw: random.Random) -> None:
    """Something else in place of a value anywhere in a tree, or one value less, or more."""
    places = [(tree, key) for key in tree]
    for node, key in places:  # grows
        below = node[key]
        if isinstance(below, dict | list):
            places += [(below, inner) for inner in (below if isinstance(below, dict) else range(len(below)))]
    node, key = draw.choice(places)
    try:
        if draw.random() < 0.1:
            del node[key]
        else:
            node[key] = copy.deepcopy(draw.choice(VALUES))
    except (KeyError, IndexError):  # gone with an earlier change
        pass


def check(kinds: Kinds, name: str, seed: int) -> None:
    """One case."""
    kind = kinds.of[name]
    kind.file.write_bytes(changed(kinds.whole[name], seed))
    start, said = time.process_time(), ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch and Pillow
            kind.read()
    except UserError as error:
        said = str(error)
    finally:
        kind.file.write_bytes(kinds.whole[name])
    assert len(said) < 10_000
    assert time.process_time() - start < LONGEST


NAMES = (
    "a.pth", "b.pth", "c.npz", "d.npz", "e.safetensors", "model/config.json", "model/model.safetensors",
    "timm/config.json", "timm/model.safetensors", "hf/config.json", "hf/preprocessor_config.json", "data.yaml",
    "table.csv", "lines.jsonl", "pairs.tsv", "spoken.dict", "tokenizer.json", "recipe.yaml", "map.yaml", "alpha.png",
    "writer/config.json", "writer/tokenizer.json", "writer/model.safetensors",
    *(f"image.{ending}" for ending in IMAGES),
)  # fmt: skip
CASES = st.sampled_from(NAMES), st.integers(0, 2**32 - 1)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def test_all_kinds_are_tried(kinds: Kinds) -> None:
    assert set(NAMES) == kinds.of.keys()


@given(*CASES)
@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
def test_changed_files_are_read_or_refused(kinds: Kinds, name: str, seed: int) -> None:
    check(kinds, name, seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_many_changed_files_are_read_or_refused(kinds: Kinds, name: str) -> None:
    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=2000 // len(NAMES) + 1, deadline=None, database=None, suppress_health_check=QUIET)
    def run(seed: int) -> None:
        check(kinds, name, seed)

    run()

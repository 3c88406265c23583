"""`vitral export` of graphs: they are the model, say what they are, and leave nothing where they are not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitral
from tests.helpers import edit_config, random_model, write_colors
from vitral.cli.main import main
from vitral.data.config import DataSource
from vitral.data.decode import as_image
from vitral.data.image_spec import ImageSpec
from vitral.engines import FILES, open_export
from vitral.export import formats
from vitral.export.config import ExportOptions
from vitral.export.exporter import Samples, builtin_samples, export_network
from vitral.export.graph import quiet
from vitral.export.parity import MIN_COSINE, builtin_images
from vitral.models.convolution import Block
from vitral.models.create import build_model
from vitral.models.presets import resolve
from vitral.predictor import Predictor
from vitral.run import ray_map
from vitral.run.command_options import ExportCommandOptions, PredictOptions
from vitral.run.export import _samples
from vitral.run.predict import predictions
from vitral.weights.find_model import load_model
from vitral.weights.folder import FolderConfig

FORMATS = ("onnx", "pt2", "openvino")
OPENVINO = pytest.param("openvino", marks=pytest.mark.oracle)
KINDS = ("onnx", "pt2", OPENVINO)
Capture = pytest.CaptureFixture[str]
# One of each kind of model: grid and sizes that have the resize, the positions and the pooling of their own.
VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {"pool": "cls"},
    "color, not square, average": {"in_channels": 3, "image_size": (12, 16), "pool": "avg"},
    "registers and rotation": {"positions": "rope", "registers": 2, "layer_scale": 0.1},
    "offsets, QK norm": {"positions": "relative", "qk_norm": True},
    "bias tables": {"positions": "relative_bias", "key_bias": False, "layer_scale": 0.1, "pool": "avg"},
    "attention pooling, SwiGLU": {"pool": "map", "class_token": False, "mlp": "swiglu"},
    "distilled": {"pool": "cls", "class_token": True, "distill_token": True},
    "sines, both poolings": {"positions": "sincos", "pool": "cls_avg"},
    "hybrid": {"patch_size": 16, "image_size": 32, "stem_blocks": (1,)},
}
# Zeros padded in front of a max pool that are larger than all else there.
BIT = {"blocks": (1, 1), "image_size": 32, "num_classes": 5}


def need(kind: str) -> None:
    """Skip where the packages of this format are not installed."""
    for module in {"onnx": ["onnx", "onnxruntime", "onnxscript"], "openvino": ["openvino", "onnx", "onnxscript"]}.get(
        kind, []
    ):
        pytest.importorskip(module, reason=f"the extra for {kind} is not installed")


def preprocessing(**changes: Any) -> None:
    """Change the folder `model`."""
    edit_config(Path("model"), lambda tree: tree["preprocessing"].update(changes))


def pictures() -> list[Any]:
    """Files as people have them: JPEG of two sizes, a gray PNG, one with alpha, one of 16 bits."""
    draw = np.random.default_rng(0)
    found: list[Any] = []
    for number, (mode, size, suffix) in enumerate(
        [("RGB", (31, 17), "jpg"), ("RGB", (200, 150), "jpg"), ("L", (20, 20), "png"), ("RGBA", (40, 9), "png")]
    ):
        channels = len(Image.new(mode, (1, 1)).getbands())
        small = draw.integers(0, 256, (5, 6, channels), dtype=np.uint8)
        image = Image.fromarray(small.squeeze()).resize(size, Image.Resampling.BICUBIC)
        image.save(f"{number}.{suffix}")
        found.append(f"{number}.{suffix}")
    Image.fromarray(draw.integers(0, 65536, (13, 11), dtype=np.uint16)).save("deep.png")
    return [*found, "deep.png"]


def logits(predictor: Predictor, images: list[Any]) -> torch.Tensor:
    """Of pictures of any kind."""
    return predictor.forward([predictor.preprocess(image) for image in images])


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_all_sizes_and_modes_get_the_models_answers(kind: str, capsys: Capture) -> None:
    need(kind)
    random_model(Path("model"), ("gato", "cão", "猫"), in_channels=3, image_size=(12, 16))
    preprocessing(crop_pct=0.875, background="#2080ff")
    assert main(["export", "model", f"format={kind}", "out=there"]) == 0
    files = pictures()
    mine, theirs = vitral.load("model", "cpu"), vitral.load("there")
    assert float((logits(mine, files) - logits(theirs, files)).abs().max()) <= 1e-3
    capsys.readouterr()
    answers = []
    for model in ("model", "there", f"there/{FILES[kind]}"):
        assert main(["predict", model, *files]) == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert [row["image"] for row in answers[1]] == files
    for mine_row, *others in zip(*answers, strict=True):
        for row in others:
            assert [each["label"] for each in row["predictions"]] == [each["label"] for each in mine_row["predictions"]]
            for one, other in zip(row["predictions"], mine_row["predictions"], strict=True):
                assert one["score"] == pytest.approx(other["score"], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_top1_agrees_on_256_images(kind: str) -> None:
    need(kind)
    random_model(Path("model"), tuple("0123456789"), in_channels=3)
    network, config = load_model("model")
    options = ExportOptions(format=kind, out="there")  # pyright: ignore[reportArgumentType]
    report = export_network(network, config, "", options, builtin_samples(256, config)).parity
    assert (report.images, report.agreement) == (256, 1.0)
    assert report.max_difference <= 1e-3
    assert report.behind_resize <= 1e-4
    assert json.loads(Path("there/parity.json").read_text(encoding="utf-8")) == json.loads(report.model_dump_json())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_model(variant: str) -> None:
    need("onnx")
    options = {
        "width": 16,
        "depth": 2,
        "heads": 2,
        "mlp_dim": 32,
        "image_size": 12,
        "num_classes": 5,
        **VARIANTS[variant],
    }
    for kind in ("onnx", "pt2"):
        exported(kind, "vit_micro_patch2_8", options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_bit(kind: str) -> None:
    need(kind)
    exported(kind, "resnetv2_50x1_bit", BIT, images=7)


def exported(kind: str, preset: str, options: dict[str, Any], images: int = 21) -> None:
    """Build, export, compare."""
    architecture = resolve(preset, **options)
    torch.manual_seed(0)
    model = build_model(architecture).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "head" in name or "offset" in name:
                parameter.normal_(std=0.3)
        # Else the maps of random networks grow from block to block: 110 layers reach 10^8, where float32 is 300 off.
        for block in (each for each in model.modules() if isinstance(each, Block)):
            block.last_norm.weight.fill_(0.2)
    config = FolderConfig(task="classification",
        name=preset, architecture=architecture, id2label={str(i): f"c{i}" for i in range(architecture.num_classes)},
        preprocessing=ImageSpec(
            image_size=architecture.image_size, channels=architecture.in_channels, resize_mode="squash"
        ),
        provenance={},
    )  # fmt: skip
    expected = ExportOptions(format=kind, out=f"{kind}-out", overwrite=True)  # pyright: ignore[reportArgumentType]
    files = [as_image(file, architecture.in_channels) for file in pictures()]
    samples = Samples("built-in images and files", [*builtin_images(images, config), *files])
    report = export_network(model, config, "", expected, samples).parity
    assert report.agreement in (1.0, None)
    assert report.max_difference <= 1e-3
    assert report.behind_resize <= 1e-4


# One preset for each kind of layer goes to every runtime; others, which differ in sizes alone, to one in turn.
OWN_LAYERS = {
    "vit_micro_patch2_8": 8, "vit_small_patch16_224": 64, "vit_small_r26_s32_224": 64, "resnet18_cifar": 32,
    "deit_small_distilled_patch16_224": 64, "vit_small_patch14_reg4_dinov2": 56, "vit_small_plus_patch16_dinov3": 64,
    "resnetv2_50x1_bit": 64,
}  # fmt: skip
OTHERS = {
    "vit_nano_patch4_32": 32, "vit_small_patch8_224": 48, "vit_base_patch16_224": 64, "vit_base_patch32_224": 64,
    "vit_tiny_r_s16_p8_224": 64, "vit_base_r50_s16_224": 64, "deit_base_distilled_patch16_224": 64,
    "vit_base_patch14_dinov2": 56, "vit_base_patch16_dinov3": 64, "resnet110_cifar": 32, "resnetv2_101x1_bit": 64,
}  # fmt: skip
EXPORTED = [
    *((*each, kind) for each in OWN_LAYERS.items() for kind in FORMATS),
    *((*each, FORMATS[place % len(FORMATS)]) for place, each in enumerate(OTHERS.items())),
]


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "size", "kind"), EXPORTED)
def test_presets_up_to_base(preset: str, size: int, kind: str) -> None:
    """Of Transformers three blocks, which are all alike; the next test has all of one."""
    need(kind)
    fewer = {"depth": 3} if "depth" in type(resolve(preset)).model_fields else {}
    exported(kind, preset, {"image_size": size, "num_classes": 10, **fewer}, images=14)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_at_its_full_size(kind: str) -> None:
    need(kind)
    exported(kind, "vit_tiny_patch16_224", {"num_classes": 1000}, images=256)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("takes", ["pixels", "resized"])
def test_a_batch_that_is_fixed_in_the_graph(kind: str, takes: str) -> None:
    need(kind)
    random_model(Path("model"), in_channels=1)
    assert main(["export", "model", f"format={kind}", "out=there", f"takes={takes}", "batch=3", "images=4"]) == 0
    mine, theirs = vitral.load("model", "cpu"), vitral.load("there")
    images = [torch.randint(0, 256, (9, 14), dtype=torch.uint8) for _ in range(7)]
    for count in (1, 3, 7):
        torch.testing.assert_close(logits(theirs, images[:count]), logits(mine, images[:count]), rtol=0, atol=1e-4)
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession("there/model.onnx", providers=["CPUExecutionProvider"])
        expected = {"pixels": [3, "height", "width", 1], "resized": [3, 1, 8, 8]}[takes]
        assert [each.shape for each in (*session.get_inputs(), *session.get_outputs())] == [expected, [3, 3], [3, 3]]
    if kind == "openvino" and takes == "resized":
        import openvino

        assert not openvino.Core().read_model("there/model.xml").is_dynamic()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("takes", ["pixels", "resized"])
def test_batches_of_any_size(kind: str, takes: str) -> None:
    need(kind)
    random_model(Path("model"), in_channels=1)
    assert main(["export", "model", f"format={kind}", "out=there", f"takes={takes}", "images=2"]) == 0
    engine = open_export(next(path for path in Path("there").iterdir() if path.suffix in (".onnx", ".pt2", ".xml")))
    model = vitral.load("model", "cpu").model
    shape = (7, 8, 8, 1) if takes == "pixels" else (7, 1, 8, 8)
    images = torch.randint(0, 256, shape, dtype=torch.uint8) if takes == "pixels" else torch.rand(shape)
    with torch.inference_mode():
        expected = model(images.permute(0, 3, 1, 2) if takes == "pixels" else images)
        for count in (1, 2, 5, 7):
            torch.testing.assert_close(engine.logits(images[:count]), expected[:count], rtol=0, atol=1e-4)
    mine, theirs = vitral.load("model", "cpu"), vitral.load("there")
    tiny = [torch.full(size, 200, dtype=torch.uint8) for size in ((1, 1), (1, 40), (40, 1), (2, 1), (1, 1))]
    torch.testing.assert_close(logits(theirs, tiny), logits(mine, tiny), rtol=0, atol=1e-4)


def test_an_onnx_file_says_what_it_is_and_gives_scores() -> None:
    need("onnx")
    import onnxruntime

    random_model(Path("model"), ("gato", "cão", "猫"))
    assert main(["export", "model", "format=onnx", "out=there"]) == 0
    session = onnxruntime.InferenceSession("there/model.onnx", providers=["CPUExecutionProvider"])
    said = json.loads(session.get_modelmeta().custom_metadata_map["vitral"])
    beside = json.loads(Path("there/config.json").read_text(encoding="utf-8"))
    assert beside.pop("digests").keys() == {"config.json", "model.onnx"}
    assert said == beside
    assert said["model"]["id2label"] == {"0": "gato", "1": "cão", "2": "猫"}
    assert said["card"] == "a card\n" == Path("there/README.md").read_text(encoding="utf-8")
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("images", ["batch", "height", "width", 1])]
    assert [each.name for each in session.get_outputs()] == ["logits", "scores"]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 14, 1), dtype=np.uint8)
    logits_BS, scores_BS = session.run(None, {"images": pixels})
    expected = torch.softmax(torch.from_numpy(logits_BS) / 2.0, dim=-1)  # the folder's temperature
    torch.testing.assert_close(torch.from_numpy(scores_BS), expected)
    torch.testing.assert_close(expected.numpy(), vitral.load("model").probabilities(list(pixels)), rtol=0, atol=1e-5)


def test_several_classes_an_image_and_none_at_all() -> None:
    need("onnx")
    random_model(Path("model"))
    network, config = load_model("model")
    many = config.model_copy(update={"task": "multilabel", "temperature": 1.0})
    samples = Samples("noise", builtin_images(4, config))
    export_network(network, many, "", ExportOptions(format="onnx", out="many"), samples)
    mine, theirs = Predictor(network, many, "cpu"), vitral.load("many")
    images = [np.full((9, 12), level, np.uint8) for level in (0, 90, 255)]
    np.testing.assert_allclose(theirs.probabilities(images), mine.probabilities(images), atol=1e-5)
    random_model(Path("bare"), ())
    assert main(["export", "bare", "format=onnx", "out=features"]) == 0
    assert json.loads(Path("features/parity.json").read_text(encoding="utf-8"))["agreement"] is None
    assert main(["predict", "features", "bare"]) == 2


@pytest.mark.parametrize("kind", ["onnx", OPENVINO])
@pytest.mark.parametrize("quantize", ["dynamic", "static"])
def test_int8_loses_at_most_a_point_on_the_digits(kind: str, quantize: str, capsys: Capture) -> None:
    need("onnx")
    need(kind)
    words = ["export", "vitral-digits", f"format={kind}", "precision=int8", f"quantize={quantize}", "data=digits"]
    if (kind, quantize) == ("openvino", "dynamic"):
        assert main([*words, "out=there"]) == 2
        return
    assert main([*words, "out=there", "images=360", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 360
    assert report["agreement"] >= 0.98
    assert report["max_difference"] > 1e-2, "8 bits are not 32"
    scores = []
    for model in ("vitral-digits", "there"):
        assert main(["eval", model, "data=digits", "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["top1"])
    assert scores[1] >= scores[0] - 0.01


@pytest.mark.parametrize("kind", ["pt2", OPENVINO])
def test_bfloat16(kind: str) -> None:
    need(kind)
    random_model(Path("model"), width=64, mlp_dim=128)
    for precision in ("float32", "bfloat16"):
        assert main(["export", "model", f"format={kind}", f"precision={precision}", f"out={precision}"]) == 0
    found = {p: json.loads(Path(p, "parity.json").read_text(encoding="utf-8")) for p in ("float32", "bfloat16")}
    assert found["bfloat16"]["agreement"] >= 0.95
    sizes = {p: sum(path.stat().st_size for path in Path(p).glob("model.*")) for p in found}
    assert sizes["bfloat16"] < 0.9 * sizes["float32"]


def test_beyond_the_limit_nothing_is_left(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    random_model(Path("model"))
    assert main(["export", "model", "format=pt2", "out=there", "max_difference=1e-12", "images=3"]) == 3
    assert "differs from the model by" in capsys.readouterr().err
    real = formats.capture

    def wrong(network: Any, metadata: Any) -> Any:
        return real(build_model(network.config), metadata)  # another model's weights

    monkeypatch.setattr(formats, "capture", wrong)
    assert main(["export", "model", "format=pt2", "out=there"]) == 3
    assert [path.name for path in Path.cwd().iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("onnx", "int8"), ("pt2", "bfloat16"),
        *(pytest.param("openvino", precision, marks=pytest.mark.oracle) for precision in ("int8", "bfloat16")),
    ],
)  # fmt: skip
def test_features_in_few_bits_point_where_the_models_do(
    kind: str, precision: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    need("onnx" if kind == "onnx" else kind)
    random_model(Path("bare"), (), width=64, mlp_dim=128)
    words = ["export", "bare", f"format={kind}", f"precision={precision}"]
    assert main([*words, "out=there"]) == 0
    assert "features have a cosine of 0.9" in capsys.readouterr().out
    report = json.loads(Path("there/parity.json").read_text(encoding="utf-8"))
    assert report["agreement"] is None
    assert MIN_COSINE[precision] <= report["cosine"] < 1
    assert main([*words, "out=more", "min_agreement=1"]) == 3
    real = formats.capture

    def wrong(network: Any, metadata: Any) -> Any:
        return real(build_model(network.config), metadata)  # another model's weights

    monkeypatch.setattr(formats, "capture", wrong)
    capsys.readouterr()
    assert main([*words, "out=broken"]) == 3
    assert "the cosine of the export's features" in capsys.readouterr().err
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["bare", "there"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    random_model(Path("model"))
    for module, kind, extra in (("onnx", "onnx", "export"), ("openvino", "openvino", "openvino")):
        monkeypatch.setitem(sys.modules, module, None)
        assert main(["export", "model", f"format={kind}", "out=there"]) == 2
        assert f'pip install "vitral[{extra}]"' in capsys.readouterr().err
    assert [path.name for path in Path.cwd().iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["format=onnx", "precision=bfloat16"], "no bfloat16"),
        (["format=pt2", "precision=int8"], "format=onnx"),
        (["format=onnx", "quantize=static"], "precision=int8"),
        (["format=hf", "takes=resized"], "takes has no effect"),
        (["format=hf", "batch=1"], "batch has no effect"),
        (["format=onnx", "batch=0"], "batch"),
        (["format=hf", "data=digits"], "data has no effect"),
        (["format=onnx", "split=test"], "data=DIR"),
        (["format=onnx", "data.max_bad=3"], "data.max_bad has no effect"),
        (["format=onx"], "did you mean 'onnx'?"),
        (["format=onnx", "images=0"], "images"),
    ],
)
def test_wrong_words_are_one_message(words: list[str], part: str, capsys: Capture) -> None:
    random_model(Path("model"))
    assert main(["export", "model", "out=there", *words]) == 2
    assert part in capsys.readouterr().err
    assert [path.name for path in Path.cwd().iterdir()] == ["model"]


def test_damaged_and_foreign_files_are_one_message(capsys: Capture) -> None:
    Image.new("L", (8, 8)).save("gray.png")
    need("onnx")
    for name in ("broken.onnx", "broken.pt2"):
        Path(name).write_bytes(b"not a model")
        assert main(["predict", name, "gray.png"]) == 2
        assert name in capsys.readouterr().err
    with quiet():
        program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
        torch.onnx.export(program, (), "foreign.onnx", dynamo=True, verbose=False)
    assert main(["predict", "foreign.onnx", "gray.png"]) == 2
    assert "doesn't say its classes" in capsys.readouterr().err


@pytest.mark.oracle
def test_a_damaged_openvino_file_is_one_message(capsys: Capture) -> None:
    need("openvino")
    Image.new("L", (8, 8)).save("gray.png")
    Path("broken.xml").write_bytes(b"not a model")
    assert main(["predict", "broken.xml", "gray.png"]) == 2
    assert "not readable by OpenVINO" in capsys.readouterr().err


def test_an_export_is_for_predicting(capsys: Capture) -> None:
    random_model(Path("model"))
    Image.new("L", (8, 8)).save("gray.png")
    assert main(["export", "model", "format=pt2", "out=there"]) == 0
    assert main(["predict", "there", "gray.png", "image_size=16"]) == 2
    assert main(["predict", "there", "gray.png", "engine=auto"]) == 2
    assert main(["embed", "there", "gray.png"]) == 2
    assert "an export predicts classes" in capsys.readouterr().err
    Path("there/model.pt2").unlink()
    assert main(["predict", "there", "gray.png"]) == 2
    assert "not complete" in capsys.readouterr().err


def test_on_a_cluster_an_export_is_for_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    random_model(Path("model"))
    assert main(["export", "model", "format=pt2", "out=there", "images=2"]) == 0

    def asked(work: object, items: object, device: str, workers: object) -> Any:
        return iter([{"device": device}])

    monkeypatch.setattr(ray_map, "map_on_cluster", asked)
    for model, device, expected in (("there", "auto", "cpu"), ("model", "auto", "auto"), ("there", "cuda", "cuda")):
        assert list(predictions(model, ["a.png"], PredictOptions(engine="ray", device=device))) == [
            {"device": expected}
        ]


def test_int8_is_judged_on_other_images_than_its_scales_are_from() -> None:
    need("onnx")
    random_model(Path("model"), ("cat", "dog"), in_channels=3)
    write_colors(Path("pets"), count=20)
    options = ExportCommandOptions(
        format="onnx", precision="int8", quantize="static", out="o", data=DataSource(path="pets")
    )
    config = load_model("model")[1]
    samples = _samples(config, options, "model")
    assert (len(samples.compared), len(samples.calibration)) == (32, 8)
    assert not {image.numpy().tobytes() for image in samples.compared} & {
        image.numpy().tobytes() for image in samples.calibration
    }
    assert samples.source == samples.calibration_source == "train images of pets"
    samples = _samples(config, options.model_copy(update={"images": 40}), "model")
    assert (len(samples.compared), len(samples.calibration)) == (40, 40)
    assert "the same that were compared" in samples.calibration_source


def test_onnx_files_of_strangers_are_one_message(capsys: Capture) -> None:
    """Cut, flipped, with weights beside it that are not there or elsewhere."""
    need("onnx")
    import onnx

    random_model(Path("model"))
    Image.new("L", (8, 8)).save("gray.png")
    assert main(["export", "model", "format=onnx", "out=there", "images=1"]) == 0
    whole = Path("there/model.onnx").read_bytes()
    proto = onnx.load("there/model.onnx")
    cases = {"cut": whole[: len(whole) // 2], "empty": b"", "zeros": bytes(1000)}
    for where in ("/etc/passwd", "../gray.png", "gone.bin", "a\0b"):
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        tensor = max(changed.graph.initializer, key=lambda each: len(each.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=where)
        cases[f"beside {len(cases)}"] = changed.SerializeToString()
    draw = np.random.default_rng(0)
    for number in range(20):
        flipped = bytearray(whole)
        flipped[int(draw.integers(0, 4000))] ^= 1 << int(draw.integers(0, 8))
        cases[f"flip {number}"] = bytes(flipped)
    capsys.readouterr()
    for name, data in cases.items():
        Path("strange.onnx").write_bytes(data)
        code = main(["predict", "strange.onnx", "gray.png"])
        said = capsys.readouterr().err
        assert code == 2 or (code == 0 and name.startswith("flip")), name
        assert code == 0 or said.startswith("error: "), name

"""`vitral export`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vitral.cli.command import Answer, Arguments, command
from vitral.errors import shown_lines
from vitral.run.command_options import ExportCommandOptions
from vitral.run.text_options import TextExportOptions

if TYPE_CHECKING:
    from vitral.export.parity import Parity

HELP = """usage: vitral export MODEL format=hf|timm|onnx|pt2|openvino out=DIR [key=value ...] [--json]

Writes a model for another library or runtime, with its class names and preprocessing, and compares the outputs.
hf, timm: a folder that transformers or timm loads. onnx, pt2, openvino: the whole function, from an image of any size
to probabilities; `vitral predict` and `vitral eval` take the result like a model folder. If logits or classes differ by
more than the limits, nothing is written and the exit code is 3. Run ONNX and OpenVINO files of unknown origin with
care: they compute what they contain, with as much memory as that takes (`vitral docs export`).
MODEL is a bundled model, a model folder, a run folder, weights of another library or a name on the Hugging Face Hub.
A model that writes text becomes a folder with encoder.onnx and decoder_step.onnx, which `vitral predict` takes; the
texts of greedy and beam search are compared. `vitral export MODEL --help` shows its keys.

{keys}

examples:
  vitral export runs/mine format=onnx out=mine-onnx data=PHOTOS      compared on your images
  vitral predict mine-onnx/model.onnx photo.jpg
  vitral export runs/mine format=openvino precision=int8 out=mine-int8 data=PHOTOS min_agreement=0.98
  vitral export runs/mine format=hf out=mine-hf         AutoModelForImageClassification.from_pretrained("mine-hf")
  vitral export runs/mine format=timm out=mine-timm     timm.create_model("local-dir:mine-timm", pretrained=True)
"""


@command(HELP, ExportCommandOptions, text=TextExportOptions)
def run(arguments: Arguments, options: ExportCommandOptions | TextExportOptions) -> Answer:
    """Export and compare."""
    if isinstance(options, TextExportOptions):
        return _text(arguments.words[0], options)
    from vitral.export.library_folders import Written
    from vitral.run.export import export_model

    done = export_model(arguments.words[0], options)
    for note in done.notes:
        print(shown_lines(note), file=sys.stderr)
    tree: dict[str, Any] = {"out": str(done.out)}
    if isinstance(done, Written):
        tree |= {"max_difference": done.difference, "images": done.images}
        text = f"{done.out}: read back, outputs differ by at most {done.difference:.1e} ({done.images} images)"
    else:
        tree |= {"file": done.file, "precision": options.precision, "takes": options.takes}
        tree |= done.parity.model_dump(mode="json")
        text = _report(f"{done.out}/{done.file}", done.parity)
    return Answer({**tree, "notes": done.notes}, lambda: text)


def _text(model: str, options: TextExportOptions) -> Answer:
    from vitral.run.text_export import export_text_model

    out, files, parity = export_text_model(model, options)
    tree = {"out": str(out), "files": files, "precision": "float32", **parity.model_dump(mode="json")}
    shares = ", ".join(f"{100 * share:.1f} % by {name}" for name, share in parity.agreement.items())
    lines = [
        f"{out} ({', '.join(files)}): compared with the model on {parity.sources} {parity.source}",
        f"  texts agree: {shares}; their scores differ by at most {parity.max_difference:.1e}",
        f"  {parity.speedup:.2f} times as fast as torch, here and now (greedy, batches of {parity.batch})",
    ]
    return Answer(tree, lambda: "\n".join(lines))


def _report(file: str, parity: Parity) -> str:
    low, high = parity.speedup_range
    lines = [
        f"{file}: compared with the model on {parity.images} {parity.source}",
        f"  logits differ by at most {parity.max_difference:.1e}, behind the resize {parity.behind_resize:.1e}",
    ]
    if parity.agreement is not None:
        more = "".join(f"; {name.replace('_', ' ')} {value:.3g}" for name, value in parity.answers.items())
        lines.append(f"  answers agree to {100 * parity.agreement:.1f} %{more}")
    if parity.cosine is not None:
        lines.append(f"  features have a cosine of {parity.cosine:.5f} with the model's, on average")
    lines.append(
        f"  {parity.speedup:.2f} times as fast as torch, here and now "
        f"(batches of {parity.batch}, {parity.rounds} rounds, quartiles {low:.2f} to {high:.2f})"
    )
    return "\n".join(lines)

"""What a model that writes text consists of, the way of a sentence through it, and what its layers cost."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from vitral.config import build
from vitral.errors import UserError
from vitral.files import JSON_BYTES, parse_json, read_text
from vitral.models.presets import PRESETS, resolve_sequence
from vitral.models.sequence_config import ImageToTextConfig, LSTMConfig, SequenceConfig
from vitral.models.summary import count_macs, meta_model
from vitral.models.summary import summarize as stages_of
from vitral.run.text_options import TextSummaryOptions
from vitral.text_engines import TextExportMetadata
from vitral.weights.digests import CONFIG, KEY, WEIGHTS
from vitral.weights.find_model import find_model
from vitral.weights.folder import refuse_larger
from vitral.weights.tensors import tensor_shapes
from vitral.weights.text_folder import TextFolderConfig
from vitral.weights.text_kind import find_text_export

_MOST_BLOCKS = 1000  # building so many without values takes a second
# A module inside a block other than the first: encoder.blocks.1.attn.
_INSIDE = re.compile(r"\.[1-9]\d*\.(?:.*\.)?[^.\d][^.]*$")


def summarize_text(name: str, options: TextSummaryOptions) -> dict[str, Any]:
    """Return parameters and multiply-accumulates by part, the output shape of every stage, and the cost of a layer of
    each kind at the model's width. Raises UserError for a length beyond the model's."""
    config = resolve_sequence(name) if name in PRESETS else _config_of(name)
    own = Counter[str]()
    for parameter, value in meta_model(config).named_parameters():
        own[_part(parameter)] += value.numel()
    macs = {part: count for part, count in count_macs(config).items() if count}
    n, d = _size(config, options.length)
    return {
        "parameters": sum(own.values()), "parameters_parts": dict(own), "macs": sum(macs.values()),
        "macs_parts": macs, "inputs": {key: list(shape) for key, shape in config.input_shapes.items()},
        "walk": [{"stage": row.name, "shape": list(row.shape)} for row in stages_of(config)
                 if row.shape and not _INSIDE.search(row.name)],
        "n": n, "d": d, "kernel": options.kernel, "layers": layers(n, d, options.kernel, config),
    }  # fmt: skip


def layers(n: int, d: int, k: int, config: SequenceConfig | None = None) -> list[dict[str, Any]]:
    """Return the rows of table 1 of arXiv 1706.03762 for n tokens of d features and a kernel of k tokens.

    operations: complexity per layer; sequential: operations that must follow each other; path: the longest one between
    two tokens, log_k(n) for convolutions, which are dilated to reach so far. used: where `config` has such layers.
    """
    recurrent = isinstance(config, LSTMConfig)
    is_used = {"self-attention": config is not None and not recurrent, "recurrent": recurrent, "convolution": False}
    reach = math.ceil(math.log(n) / math.log(k) - 1e-9) if n > 1 else 0
    values: dict[str, tuple[str, int, int, int]] = {
        "self-attention": ("n^2 d", n * n * d, 1, 1), "recurrent": ("n d^2", n * d * d, n, n),
        "convolution": ("k n d^2", k * n * d * d, 1, max(reach, 1)),
    }  # fmt: skip
    return [
        {"layer": kind, "formula": formula, "operations": operations, "sequential": steps, "path": path,
         "used": "yes" if is_used[kind] else ""}
        for kind, (formula, operations, steps, path) in values.items()
    ]  # fmt: skip


def _size(config: SequenceConfig, length: int | None) -> tuple[int, int]:
    """Tokens and features of a layer: those of the encoder where images are read, else of a text."""
    if isinstance(config, ImageToTextConfig):
        if length is not None:
            raise UserError("a model that reads images has as many tokens as patches", where="length", got=length)
        rows, columns = config.encoder.grid
        return rows * columns, config.encoder.width
    if length is not None and length > config.max_length and config.decodes_steps:
        raise UserError("longer than the model's texts", where="length", got=length, expected=config.max_length)
    return length or config.example_length, config.width


def _part(parameter: str) -> str:
    """The stack or layer that a parameter belongs to: encoder.blocks, decoder.embed, output."""
    blocks, _, inside = parameter.partition(".blocks.")
    return f"{blocks}.blocks" if inside else ".".join(parameter.split(".")[:-1][:2])


def _config_of(model: str) -> SequenceConfig:
    """The architecture that the config.json of a model folder or an export says. Raises UserError for one that does not
    fit the folder's weights; of an export, whose graphs are not read, for one of too many blocks."""
    export = find_text_export(model)
    path = (export or find_model(model)) / CONFIG
    tree = parse_json(read_text(path, JSON_BYTES), where=str(path))
    assert isinstance(tree, dict)
    tree.pop(KEY, None)
    if export is None:
        architecture = build(TextFolderConfig, tree, where=str(path)).architecture
        refuse_larger(architecture, tensor_shapes(path.with_name(WEIGHTS)), str(path))
        return architecture
    architecture = build(TextExportMetadata, tree, where=str(path)).model.architecture
    blocks = architecture.block_count + architecture.stem_block_count
    if blocks > _MOST_BLOCKS:
        got, expected = f"{blocks:,} blocks", f"at most {_MOST_BLOCKS:,}"
        raise UserError("this architecture is too deep for an export", where=str(path), got=got, expected=expected)
    return architecture

"""Write texts with a model folder: texts or images of any kind in, texts out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from vitral.data.resize import fit_image
from vitral.data.text.batches import token_ids
from vitral.data.text.tokenizer import named, normalized
from vitral.data.text.tokenizer_file import Tokenizers
from vitral.errors import UserError
from vitral.models.search_config import SearchConfig
from vitral.models.sequence_model import SequenceModel
from vitral.predictor import Predictor, decode_image, load, pick_device, require_batch_size
from vitral.tasks.text_writing import TextWriter, Written, check_search, unread_keys, write, write_stream
from vitral.text_engines import load_text_export
from vitral.weights.text_folder import TextFolderConfig, load_text_folder
from vitral.weights.text_kind import find_text_export, is_text_model

T = TypeVar("T")


class Runtime(NamedTuple):
    """What computes: torch or onnxruntime, and its precision."""

    name: str
    precision: str


class TextPredictor:
    """Texts by one model folder or export. Sources are prepared exactly as in `vitral eval`.

    writer: a `SequenceModel`, or the same function in another runtime, which computes on the processor.
    """

    def __init__(
        self, writer: TextWriter, config: TextFolderConfig, tokenizers: Tokenizers, device: str = "auto"
    ) -> None:
        is_torch = isinstance(writer, SequenceModel)
        self.device = pick_device("cpu" if not is_torch and device == "auto" else device)
        if self.device.type != "cpu" and not is_torch:
            raise UserError("exports run on the processor", where="device", got=device, expected="auto or cpu")
        self.writer = writer.to(self.device).eval() if isinstance(writer, SequenceModel) else writer
        self.config, self.tokenizers, self.task = config, tokenizers, config.make_task()
        self.engine = Runtime("torch" if is_torch else "onnxruntime", "float32")

    @property
    def model(self) -> SequenceModel:
        """The network. Raises UserError for an export, which only writes."""
        if not isinstance(self.writer, SequenceModel):
            hint = "Take the model folder that it was made from."
            raise UserError("an export writes texts and gives nothing else", where=self.config.name, hint=hint)
        return self.writer

    @property
    def reads_images(self) -> bool:
        """Whether sources are images, and not texts."""
        return self.config.architecture.reads_images

    def reads(self, text: str) -> bool:
        """Whether the model can read a text: it is not empty or too long, and all of it has ids."""
        tokenizer = self.tokenizers.source
        assert tokenizer is not None
        fits = bool(text.strip()) and not tokenizer.unknown(text)
        return fits and len(tokenizer.encode(text)) < self.config.longest_source

    def resolve_search(self, search: SearchConfig | None) -> SearchConfig:
        """Return how texts are written: None stands for the folder's search, whose `max_length` is also the default of
        any other one. Raises UserError for a search that the model cannot do, and for keys that have no effect with it
        and are not the folder's own."""
        own, architecture = self.config.search, self.config.architecture
        if search is None:
            search = own
        elif architecture.decodes_steps:
            search = search.with_length(own.max_length)
        useless = [key for key in unread_keys(search, architecture) if getattr(search, key) != getattr(own, key)]
        if useless:
            where = ", ".join(f"search.{key}" for key in useless)
            raise UserError("CTC gives all tokens at once, so this has no effect", where=where, hint="Leave it out.")
        check_search(search, architecture, self.tokenizers)
        return search

    def preprocess(self, sources: Sequence[Any], first: int = 0) -> Tensor:
        """Sources as the model takes them: images float32 [B, C, H, W], or ids [B, S] with their end, padded. first:
        number of the first one, in messages.

        Raises UserError for no sources, for an empty text, for characters without an id and for a text that is too
        long.
        """
        spec = self.config.preprocessing
        if not len(sources):
            raise UserError("nothing to read", where="sources", got="none", expected="one or more")
        if spec is not None:
            rows = [fit_image(decode_image(source, spec), spec.image_size, spec) for source in sources]
            return torch.stack(rows).to(self.device)
        tokenizer = self.tokenizers.source
        assert tokenizer is not None
        for number, text in enumerate(sources, first):
            where = f"text {number}"
            if not isinstance(text, str):
                raise UserError("a text is expected", where=where, got=type(text).__name__)
            if not text.strip():
                raise UserError("an empty text", where=where, expected="text to read")
            if unknown := tokenizer.unknown(normalized(text, where)):
                raise UserError(
                    "the model knows no such characters or words", where=f"{where}: {text[:40]}",
                    got=named(dict.fromkeys(unknown)),
                    hint="Its training texts have none of these. Leave them out, or write them otherwise.",
                )  # fmt: skip
        names = [f"text {first + number}" for number in range(len(sources))]
        longest, hint = self.config.longest_source, "Shorten it, or cut it into several texts."
        ids = token_ids(sources, names, tokenizer, longest, hint=hint)
        index_B = torch.arange(len(sources)).numpy()
        return ids.padded(index_B, int(ids.length_N.max())).to(self.device)

    @torch.inference_mode()
    def write_prepared(
        self, inputs: Tensor, search: SearchConfig | None, numbers: Sequence[int]
    ) -> list[list[Written]]:
        """The texts of each source that `preprocess` has prepared, best first. numbers: of sources, for sampling."""
        return write(self.writer, self.tokenizers, inputs.to(self.device), self.resolve_search(search), numbers)

    def write(
        self, sources: Sequence[Any], search: SearchConfig | None = None, batch_size: int = 64, first: int = 0
    ) -> list[list[Written]]:
        """The texts of each source, best first, by `search` (see `resolve_search`). first: number of the first source,
        which sampling depends on."""
        found: list[list[Written]] = []
        require_batch_size(batch_size)
        for start in range(0, len(sources), batch_size):
            part = sources[start : start + batch_size]
            numbers = range(first + start, first + start + len(part))
            found += self.write_prepared(self.preprocess(part, numbers.start), search, numbers)
        return found

    def predict(
        self, sources: Any, search: SearchConfig | None = None, batch_size: int = 64, *, tolerant: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield {"image" or "source", "text", "score"} for each source; "n_best" beside it where the search gives
        several. tolerant: a source that cannot be read is answered by {.., "error"}, and the others follow."""
        search = self.resolve_search(search)
        require_batch_size(batch_size)
        key, first = ("image" if self.reads_images else "source"), 0
        for part in batched(_as_list(sources), batch_size):
            for offset, (source, found) in enumerate(zip(part, self._attempt(part, search, first), strict=True)):
                name = str(source) if isinstance(source, str | Path) else first + offset
                if not isinstance(found, UserError):
                    yield {key: name, **_row(found)}
                elif tolerant:
                    yield {key: name, "error": str(found)}
                else:
                    raise found
            first += len(part)

    def _attempt(
        self, sources: Sequence[Any], search: SearchConfig | None, first: int
    ) -> Sequence[list[Written] | UserError]:
        """The texts of a batch; where a source cannot be read, each source alone."""
        try:
            return self.write(sources, search, len(sources), first)
        except UserError as error:
            if len(sources) == 1:
                return [error]
            return [self._attempt([each], search, first + place)[0] for place, each in enumerate(sources)]

    def stream(self, source: Any, search: SearchConfig | None = None) -> Iterator[str]:
        """Yield the text of one source in pieces as it is written, greedily or by sampling. Raises UserError for beam
        search, also where it is the folder's own, and for CTC."""
        yield from self.stream_prepared(self.preprocess([source]), search)

    @torch.inference_mode()
    def stream_prepared(self, input_1: Tensor, search: SearchConfig | None) -> Generator[str, None, Written]:
        """Yield the text of one source that `preprocess` has prepared in pieces; return the whole."""
        found = write_stream(self.writer, self.tokenizers, input_1.to(self.device), self.resolve_search(search))
        return (yield from found)


def _row(found: Sequence[Written]) -> dict[str, Any]:
    best, *others = found
    row: dict[str, Any] = {"text": best.text, "score": best.score}
    if not best.finished:
        row["finished"] = False
    if others:
        row["n_best"] = [{"text": each.text, "score": each.score} for each in found]
    return row


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the values in lists of `size`; the last may be shorter."""
    source = iter(values)
    while part := list(islice(source, size)):
        yield part


def _as_list(sources: Any) -> Iterable[Any]:
    return sources if isinstance(sources, list | tuple | Iterator) else [sources]


def load_text(model: str | Path, device: str = "auto", *, verify: bool = True) -> TextPredictor:
    """The predictor of a folder of a model that writes text, or of its export. Raises UserError if there is none."""
    if (export := find_text_export(model)) is not None:
        return TextPredictor(*load_text_export(export, verify=verify), device)
    network, config, tokenizers = load_text_folder(str(model), verify=verify)
    return TextPredictor(network, config, tokenizers, device)


def load_any(model: str | Path, device: str = "auto", **options: Any) -> Predictor | TextPredictor:
    """The predictor of any model: see `predictor.load` and `load_text`."""
    return load_text(model, device, **options) if is_text_model(str(model)) else load(model, device, **options)

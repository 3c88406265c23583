"""The table of sources with text, and the function that opens them."""

from __future__ import annotations

from collections.abc import Callable

from vitral.data.config import DataConfig
from vitral.data.text.config import TextSource
from vitral.data.text.dataset import TextDataset
from vitral.data.text.dictionaries import open_pronounce, open_translate
from vitral.data.text.digits_read import open_digits_read
from vitral.data.text.generated import open_generated
from vitral.data.text.image_text import open_image_names, open_image_table, open_text_files
from vitral.data.text.pairs import open_pairs
from vitral.errors import UserError

TEXT_SOURCES: dict[str, Callable[[TextSource], TextDataset]] = {
    "pairs": open_pairs,
    "reverse": open_generated,
    "copy": open_generated,
    "pronounce": open_pronounce,
    "translate_de_en": open_translate,
}
IMAGE_SOURCES: dict[str, Callable[[TextSource, DataConfig], TextDataset]] = {
    "image_table": open_image_table,
    "image_text_files": open_text_files,
    "image_names": open_image_names,
    "digits_read": open_digits_read,
}


def open_text(config: TextSource, images: DataConfig | None = None) -> TextDataset:
    """The texts that `config` names; `images`: how images are read. Raises UserError for all that the source raises,
    and for files that the system does not give."""
    try:
        if config.source in TEXT_SOURCES:
            return TEXT_SOURCES[config.source](config)
        return IMAGE_SOURCES[config.source](config, images or DataConfig())
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(error.filename or config.path)) from None

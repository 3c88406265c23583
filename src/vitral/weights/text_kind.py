"""Which kind of model a folder holds, without loading it. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from vitral.errors import UserError
from vitral.files import read_json
from vitral.weights.hub_name import is_hub_name

TEXT_FORMAT = "vitral-text-1"
TEXT_EXPORT_FORMAT = "vitral-text-export-1"


def is_text_model(model: str | Path) -> bool:
    """Whether MODEL is the folder of a model that writes text, a run folder with one, an export of one, or its name on
    the hub. Damaged and missing folders are none: what reads them says what is wrong. Raises UserError for a name that
    the hub does not know."""
    return _found(model)[1] in (TEXT_FORMAT, TEXT_EXPORT_FORMAT)


def find_text_export(model: str | Path) -> Path | None:
    """The folder of the export of a model that writes text, if MODEL is one."""
    folder, kind = _found(model)
    return folder if kind == TEXT_EXPORT_FORMAT else None


def _found(model: str | Path) -> tuple[Path, object]:
    """The first folder with a config.json, and the format that this says."""
    path = Path(model).expanduser()
    if not path.exists() and is_hub_name(str(model)):
        from vitral.weights.hub import download

        path = download(str(model))
    for folder in (path, path / "model"):
        try:
            tree = read_json(folder / "config.json")
        except UserError:
            continue
        return folder, tree.get("format") if isinstance(tree, dict) else None
    return path, None

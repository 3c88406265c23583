"""Models on the Hugging Face hub, by their names "owner/name" or "owner/name@revision". Needs the extra [hub]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitral.errors import UserError
from vitral.optional_imports import install, optional
from vitral.weights.read_files import ENDINGS, is_weights


def download(model: str) -> Path:
    """The folder in the hub's local cache that holds this model's weights and JSON files, downloaded where it is not.

    Takes safetensors where there are any, else other files of weights. HF_HOME and HF_HUB_OFFLINE count. Raises
    UserError without the extra, for unknown names, and where the hub cannot be reached.
    """
    snapshot_download = hub_client("no such model here, and names of the hub need an extra", model).snapshot_download
    name, _, revision = model.partition("@")
    try:
        for endings in (ENDINGS[:1], ENDINGS):
            patterns = ["*.json", *(f"*{ending}" for ending in endings)]
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
            if is_weights(folder):
                return folder
    except (OSError, ValueError) as error:  # what the hub's client raises derives from these
        got = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        hint = "Check the spelling, the network, and for private models `hf auth login`."
        raise UserError("not a local path, and the hub did not answer", where=model, got=got, hint=hint) from None
    raise UserError("this model of the hub has no weights", where=model)


def hub_client(without: str, where: str) -> Any:
    """The hub's client. Raises UserError where it is not installed."""
    try:
        return optional("huggingface_hub")
    except ImportError:
        raise UserError(without, where=where, hint=install("hub")) from None

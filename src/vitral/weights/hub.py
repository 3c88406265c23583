"""Models by their names on the Hugging Face hub, "owner/name" or "owner/name@revision"; needs the extra [hub]."""

from __future__ import annotations

import re
from pathlib import Path

from vitral.errors import UserError
from vitral.weights.reading import ENDINGS, is_weights

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


def is_hub_name(model: str) -> bool:
    """Whether this can only be a name on the hub: owner/name, and no folder of the owner's name is here."""
    return bool(_NAME.fullmatch(model)) and not Path(model).parent.exists()


def download(model: str) -> Path:
    """The folder in the hub's local cache that holds this model's weights and JSON files, downloaded where it is not.

    Takes safetensors where there are any, else other files of weights. HF_HOME and HF_HUB_OFFLINE count. Raises
    UserError without the extra, for unknown names, and where the hub cannot be reached.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            "no such model here, and names of the hub need an extra", where=model, hint='pip install "vitral[hub]"'
        ) from None
    name, _, revision = model.partition("@")
    try:
        for endings in (ENDINGS[:1], ENDINGS):
            patterns = ["*.json", *(f"*{ending}" for ending in endings)]
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
            if is_weights(folder):
                return folder
    except (OSError, ValueError) as error:  # what the hub's client raises derives from these
        got = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        hint = "A path of one's own has to be there; is the network?"
        raise UserError("neither here nor to be had from the hub", where=model, got=got, hint=hint) from None
    raise UserError("this model of the hub has no weights", where=model)

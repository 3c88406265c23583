"""Names of models on the Hugging Face hub: "owner/name" or "owner/name@revision". Nothing here imports torch."""

from __future__ import annotations

import re
from pathlib import Path

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


def is_hub_name(model: str) -> bool:
    """Whether this can only be a name on the hub: owner/name, and no folder of the owner's name is here."""
    return bool(HUB_NAME.fullmatch(model)) and not Path(model).parent.exists()

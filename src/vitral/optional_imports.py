"""Import packages of optional features on use, with telemetry off."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from vitral.errors import UserError

# Read by ONNX Runtime (a device id and a store of events in the user's cache), the hub's client, datasets (a count of
# loads, even of local files) and Ray when they are imported. What the user has set stays.
NO_TELEMETRY = {
    "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}  # fmt: skip


def optional(module: str) -> Any:
    """Import a package that need not be installed. Raises ImportError where it is not."""
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    # OpenVINO's import reports itself by this package, for which it has a stub where there is none.
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    return importlib.import_module(module)


def require(module: str, extra: str, where: str = "format") -> Any:
    """The same. Raises UserError, about the key `where`, that says how to install it."""
    try:
        return optional(module)
    except ImportError as error:
        raise UserError(f"{module} is not installed", where=where, got=error, hint=install(extra)) from None


def install(extra: str) -> str:
    """The command that installs what one feature needs. pip takes Vitral itself as it is installed, also a checkout."""
    return f'pip install "vitral[{extra}]"'

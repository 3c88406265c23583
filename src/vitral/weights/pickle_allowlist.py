"""Names that everyday checkpoints hold beside the weights, and that do nothing: they are read past, never called."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any


class Ignored:
    """Stands for an object that nobody needs. Takes whatever a pickle gives it, and keeps none of it."""

    def __new__(cls, *_: Any, **__: Any) -> Ignored:
        """Whatever the arguments are."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class Emptied:
    """Stands for a subclass of dict, made as the one kind of dict that torch fills and whose attributes it sets."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Whatever the arguments are."""
        return OrderedDict[Any, Any]()


_NUMPY = (
    *(f"{core}.multiarray.{name}" for core in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")),
    "numpy.ndarray", "numpy.dtype", "numpy.bool_", "numpy.str_", "numpy.bytes_",
    *(f"numpy.{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *(f"numpy.float{bits}" for bits in (16, 32, 64)),
    *(f"numpy.dtypes.{kind}{bits}DType" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float16", "Float32", "Float64", "Bool", "Str", "Bytes", "Object")),
)  # fmt: skip
_STANDARD = (
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    ),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "range", "slice")),
    *(f"builtins.{name}" for name in ("str", "tuple")),
    "types.SimpleNamespace", "decimal.Decimal", "fractions.Fraction", "uuid.UUID", "torch.torch_version.TorchVersion",
)  # fmt: skip
_CONFIGS = (
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata", "omegaconf.nodes.AnyNode", "typing.Any",
)  # fmt: skip
_DICTIONARIES = (
    "collections.defaultdict", "yacs.config.CfgNode", "fvcore.common.config.CfgNode", "easydict.EasyDict",
    "addict.addict.Dict", "mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict",
    "pytorch_lightning.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)  # fmt: skip

# As torch.serialization.safe_globals takes them: what is called, and the name in the file.
HARMLESS: list[Any] = [
    *((Ignored, name) for name in (*_NUMPY, *_STANDARD, *_CONFIGS)),
    *((Emptied, name) for name in _DICTIONARIES),
]

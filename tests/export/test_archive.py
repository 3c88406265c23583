"""PT2 archives of strangers: only those are opened that hold tensors and one graph, and can be read in one way."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import vitral
from tests.helpers import random_model
from vitral.cli.main import main
from vitral.engines import check_archive
from vitral.errors import UserError


def test_an_archive_that_may_hold_code_is_not_opened() -> None:
    """Of what torch would unpickle or load as machine code there is nothing in our own archives."""
    random_model(Path("model"))
    assert main(["export", "model", "format=pt2", "out=there"]) == 0
    check_archive(Path("there/model.pt2"))
    with zipfile.ZipFile("there/model.pt2") as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(inside)).split("/")[0]

    class Evil:
        def __reduce__(self) -> Any:
            return Path("was-here").touch, ()

    as_pickle = {name: data.replace(b'"use_pickle": false', b'"use_pickle": true') for name, data in inside.items()}
    sample = next(name for name in inside if "sample_inputs" in name)
    for change in (
        {f"{root}/data/constants/opaque_obj_0": pickle.dumps(Evil())},
        {f"{root}/data/aotinductor/model/model.so": b"machine code"},
        {"serialized_exported_program.json": b"{}"},
        as_pickle,
        {sample: pickled_archive(Evil())},
    ):
        with zipfile.ZipFile("evil.pt2", "w") as archive:
            for name, data in {**inside, **change}.items():
                archive.writestr(name, data)
        with pytest.raises(UserError, match=r"may hold code|not a PT2 archive"):
            vitral.load("evil.pt2")
    assert not Path("was-here").exists()


def pickled_archive(value: Any) -> bytes:
    """As torch.save writes it."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def test_an_archive_that_may_be_read_in_two_ways_is_not_opened() -> None:
    """torch's reader looks for names without regard to case."""
    random_model(Path("model"))
    assert main(["export", "model", "format=pt2", "out=there"]) == 0
    inside = Path("there/model.pt2").read_bytes()
    with zipfile.ZipFile("there/model.pt2") as archive:
        name = next(name for name in archive.namelist() if name.endswith("weight_0"))
    root, _, rest = name.partition("/")
    for again in (name, f"{root.swapcase()}/{rest}"):
        Path("evil.pt2").write_bytes(inside)
        with warnings.catch_warnings(), zipfile.ZipFile("evil.pt2", "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr(again, b"other weights")
        with pytest.raises(UserError, match="two entries of this archive have one name"):
            vitral.load("evil.pt2")

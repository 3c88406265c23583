"""Bring a model folder to the Hugging Face hub. Needs the extra [hub]."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vitral.data.text.tokenizer_file import NAME as TOKENIZER
from vitral.errors import UserError
from vitral.files import read_json, read_text
from vitral.optional_imports import optional
from vitral.weights.card import header_of, with_header
from vitral.weights.digests import CONFIG, WEIGHTS, signed
from vitral.weights.folder import CARD, load_folder
from vitral.weights.hub import hub_client
from vitral.weights.hub_name import HUB_NAME
from vitral.weights.text_card import text_header
from vitral.weights.text_folder import load_text_folder
from vitral.weights.text_kind import is_text_model


def push(folder: Path, name: str, *, private: bool = False, license: str | None = None, overwrite: bool = False) -> str:
    """Bring a model folder to the repository "owner/name" of the hub, in one commit; returns the web address.

    The repository is made where there is none. The card gets a YAML header if it has none, with `license` if that is
    given; of paths in its provenance the last part stays. Raises UserError for a damaged folder, another kind of name,
    without the extra, a token or the network, and for a repository that holds files already, unless `overwrite`: then
    the files of the folder replace theirs, and other files stay. No file is changed there after an error; a new
    repository may have been made, and the error says so.
    """
    if not HUB_NAME.fullmatch(name) or "@" in name:
        raise UserError("not a name on the hub", got=name, expected="OWNER/NAME")
    if is_text_model(folder):
        config, more = load_text_folder(str(folder))[1], [TOKENIZER]
        header = text_header(config)
    else:
        config, more = load_folder(str(folder))[1], list[str]()
        header = header_of(config)
    card = folder / CARD
    text = with_header(read_text(card) if card.is_file() else "", header, license)
    tree = read_json(folder / CONFIG)
    tree["provenance"] = _without_places(tree["provenance"])
    hub = hub_client("pushing needs an extra", name)
    if hub.get_token() is None:
        raise UserError("authentication required", where=name, hint="`hf auth login`, or HF_TOKEN=hf_...")
    add = hub.CommitOperationAdd
    files = [
        add(CONFIG, signed(tree, folder / WEIGHTS).encode()),
        *(add(file, str(folder / file)) for file in (WEIGHTS, *more)), add(CARD, text.encode()),
    ]  # fmt: skip
    hint = "May the token write there; is the network?"
    try:
        api = hub.HfApi()
        is_new = _check_place(api, hub.errors.RepositoryNotFoundError, name, private, overwrite)
        api.create_repo(name, private=private, exist_ok=True)
        if is_new:
            hint = f"The repository exists now and is empty. {hint}"
        api.create_commit(name, files, commit_message=f"Add {config.name}")
        return f"{api.endpoint}/{name}"
    except UserError:
        raise
    except (OSError, ValueError, _network_error()) as error:
        got = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise UserError("could not be brought to the hub", where=name, got=got, hint=hint) from None


def _check_place(api: Any, not_found: type[Exception], name: str, private: bool, overwrite: bool) -> bool:
    """Whether there is no such repository yet. Raises UserError for one that holds files, or that everybody sees where
    `private` is set."""
    try:
        info = api.model_info(name)
    except not_found:
        return True
    theirs = sorted({file.rfilename for file in info.siblings or ()} - {".gitattributes"})
    if theirs and not overwrite:
        hint = "overwrite=true replaces the model's files; the old ones stay in the history."
        raise UserError("this repository holds files already", where=name, got=", ".join(theirs[:5]), hint=hint)
    if private and not info.private:
        raise UserError("this repository is public", where="private", got="true", hint="Its settings are on the hub.")
    return False


def _without_places(value: Any) -> Any:
    """The same JSON with the last part of each absolute path: where files lie is nobody else's business."""
    if isinstance(value, dict):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    paths = (PurePosixPath(value), PureWindowsPath(value)) if isinstance(value, str) else ()
    return next((path.name for path in paths if path.is_absolute()), value)


def _network_error() -> type[Exception]:
    """What the hub's client raises where nothing answers; older clients raise OSErrors alone."""
    for name in ("httpx2", "httpx"):
        try:
            return optional(name).TransportError
        except ImportError:
            continue
    return OSError

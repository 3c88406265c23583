"""Models on the Hugging Face hub, by their names "owner/name" or "owner/name@revision": taken from there, and brought
there. Needs the extra [hub]."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vitral.errors import UserError
from vitral.files import read_json, read_text
from vitral.optional_imports import install, optional
from vitral.weights.card import with_header
from vitral.weights.digests import CONFIG, WEIGHTS, signed
from vitral.weights.folder import CARD, load_folder
from vitral.weights.read_files import ENDINGS, is_weights

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


def is_hub_name(model: str) -> bool:
    """Whether this can only be a name on the hub: owner/name, and no folder of the owner's name is here."""
    return bool(_NAME.fullmatch(model)) and not Path(model).parent.exists()


def download(model: str) -> Path:
    """The folder in the hub's local cache that holds this model's weights and JSON files, downloaded where it is not.

    Takes safetensors where there are any, else other files of weights. HF_HOME and HF_HUB_OFFLINE count. Raises
    UserError without the extra, for unknown names, and where the hub cannot be reached.
    """
    snapshot_download = _client("no such model here, and names of the hub need an extra", model).snapshot_download
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


def push(folder: Path, name: str, *, private: bool = False, license: str | None = None, overwrite: bool = False) -> str:
    """Bring a model folder to the repository "owner/name" of the hub, in one commit; returns the web address.

    The repository is made where there is none. The card gets a YAML header if it has none, with `license` if that is
    given; of paths in its provenance the last part stays. Raises UserError for a damaged folder, another kind of name,
    without the extra, a token or the network, and for a repository that holds files already, unless `overwrite`: then
    the three files of the folder replace theirs, and other files stay. No file is changed there after an error; a new
    repository may have been made, and the error says so.
    """
    if not _NAME.fullmatch(name) or "@" in name:
        raise UserError("not a name on the hub", got=name, expected="OWNER/NAME")
    _, config = load_folder(str(folder))
    card = folder / CARD
    text = with_header(read_text(card) if card.is_file() else "", config, license)
    tree = read_json(folder / CONFIG)
    tree["provenance"] = _without_places(tree["provenance"])
    hub = _client("pushing needs an extra", name)
    if hub.get_token() is None:
        raise UserError("authentication required", where=name, hint="`hf auth login`, or HF_TOKEN=hf_...")
    add = hub.CommitOperationAdd
    files = [
        add(CONFIG, signed(tree, folder / WEIGHTS).encode()),
        add(WEIGHTS, str(folder / WEIGHTS)), add(CARD, text.encode()),
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


def _client(without: str, where: str) -> Any:
    """The hub's client. Raises UserError where it is not installed."""
    try:
        return optional("huggingface_hub")
    except ImportError:
        raise UserError(without, where=where, hint=install("hub")) from None


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

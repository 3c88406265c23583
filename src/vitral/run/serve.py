"""`vitral serve`: load and name the models, and serve them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vitral.engines import find_export
from vitral.errors import UserError
from vitral.files import read_text
from vitral.predictor import Predictor
from vitral.run.command_options import ModelUse, ServeOptions
from vitral.run.inference_inputs import load_used
from vitral.serve.access_log import log_lines
from vitral.serve.app import create_app
from vitral.serve.batcher import warm_up
from vitral.serve.config import KEY_VARIABLE
from vitral.serve.middleware import LOOPBACK
from vitral.serve.model_worker import AnyPredictor, ModelSource, ModelWorker, run_in_thread
from vitral.serve.reload import signature
from vitral.serve.server import announce, listen_at, serve_workers, wait_for_signal
from vitral.text_predictor import TextPredictor, load_text
from vitral.weights.find_model import find_model
from vitral.weights.text_kind import find_text_export, is_text_model

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("vitral")


def serve(models: Sequence[str], options: ServeOptions) -> int:
    """Serves models until a signal comes; returns the exit code. Raises UserError before anything listens, also for a
    model whose answers are not finite."""
    key = read_key(options.api_key_file)
    names = names_of(models, options.names)
    if options.engine == "ray":
        _warn_if_open(options, key)
        return _on_cluster(models, names, options, key)
    bound = listen_at(options.host, options.port)  # before seconds are spent on models
    with bound:
        log_lines(options.log)
        workers = {name: _worker(name, model, options) for name, model in zip(names, models, strict=True)}
        _warn_if_open(options, key)
        return serve_workers(workers, options, key, bound)


def _warn_if_open(options: ServeOptions, key: str | None) -> None:
    if options.host not in LOOPBACK and key is None:
        log.warning("no API key: every client that reaches %s can use this server", options.host)


def _worker(name: str, model: str, options: ServeOptions) -> ModelWorker:
    path = find_text_export(model) or find_export(model) or find_model(model)
    seen = signature(path)

    def load() -> AnyPredictor:
        predictor = _writer(model, options) if is_text_model(model) else load_used(model, options)
        if isinstance(predictor, Predictor) and predictor.config.architecture.is_tokenizer:
            predictor.require_answers()
        warm_up(predictor, 1)
        return predictor

    threads = torch.get_num_threads()
    return ModelWorker(name, run_in_thread(load, threads), ModelSource(path, seen, load), threads=threads)


def _writer(model: str, options: ServeOptions) -> TextPredictor:
    """A model that writes text. Raises UserError for keys that mean nothing to it."""
    names = ModelUse.model_fields.keys() - {"device"}
    wrong = [name for name in options.model_fields_set if name in names or name == "precision"]
    if options.engine not in ("torch", "ray"):
        wrong.append("engine")
    if wrong:
        raise UserError("this key has no effect on a model that writes text", where=min(wrong), got=model)
    return load_text(model, options.device)


def _on_cluster(models: Sequence[str], names: Sequence[str], options: ServeOptions, key: str | None) -> int:
    """The same application in the processes of a Ray cluster. The models are opened here first, for what is wrong with
    them."""
    from vitral.run.ray_map import alone
    from vitral.serve.ray_deployment import deployed

    for name, model in zip(names, models, strict=True):
        _worker(name, model, alone(options, "cpu")).close()
    make_app = partial(_application, tuple(models), tuple(names), options, key)
    place: dict[str, Any] = options.model_dump(include={"device", "host", "port", "drain"})
    with deployed(make_app, replicas=options.ray.workers, **place) as url:
        announce(url, names)
        signum = wait_for_signal()
    return 128 + signum


def _application(
    models: Sequence[str], names: Sequence[str], options: ServeOptions, key: str | None, device: str
) -> FastAPI:
    """In a process of the cluster."""
    from vitral.run.ray_map import alone

    log_lines(options.log)
    workers: dict[str, ModelWorker] = {}
    for name, model in zip(names, models, strict=True):
        # An export refuses a configured device.
        is_export = find_text_export(model) or find_export(model)
        on = "cpu" if options.device == "auto" and is_export else device
        workers[name] = _worker(name, model, alone(options, on))
    return create_app(workers, alone(options, device), key)


def names_of(models: Sequence[str], names: Sequence[str]) -> list[str]:
    """What requests call the models. Raises UserError for names that are equal, unfit or not one a model."""
    if names and len(names) != len(models):
        what, expected = "one name per model is expected", f"{len(models)} names"
        raise UserError(what, where="names", got=", ".join(names), expected=expected)
    found = list(names) or [_name_of(model) for model in models]
    for name in found:
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise UserError("not a name", where="names", got=repr(name), expected="letters, digits, dots, - and _")
    if len(set(found)) < len(found):
        hint = "Name them: names=" + "[" + ",".join(f"{name}-{number}" for number, name in enumerate(found, 1)) + "]"
        raise UserError("two models would have one name", where="names", got=", ".join(found), hint=hint)
    return found


def _name_of(model: str) -> str:
    """The folder's name; of runs/mine/model, runs/mine and mine.onnx alike `mine`."""
    path = Path(model).expanduser()
    if path.exists():
        path = path.resolve()
    if path.name == "model" or path.stem == "model":
        path = path.parent
    return re.sub(r"[^\w.-]+", "-", path.stem if path.is_file() else path.name, flags=re.ASCII)


def read_key(file: str | None) -> str | None:
    """The API key of the file or of the environment. Raises UserError for both, and for one that is no key."""
    given = os.environ.get(KEY_VARIABLE)
    if file is not None:
        if given is not None:
            raise UserError(f"the key is in {KEY_VARIABLE} too", where="api_key_file", got=file)
        try:
            given = read_text(Path(file).expanduser(), 2**16).strip()
        except UserError as error:
            raise UserError("not readable", where="api_key_file", got=error) from None
    if given is not None and not re.fullmatch(r"[!-~]+", given):  # the content of the file is never logged
        where = KEY_VARIABLE if file is None else file
        raise UserError("not a key", where=where, expected="one word of ASCII letters, digits and signs")
    return given

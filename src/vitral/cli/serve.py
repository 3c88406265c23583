"""`vitral serve`."""

from __future__ import annotations

from importlib.util import find_spec

from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import build, with_overrides
from vitral.errors import UserError
from vitral.optional import install
from vitral.run.options import ServeOptions

HELP = """usage: vitral serve MODEL [MODEL ...] [key=value ...]

Predictions, features and attention over HTTP: POST /v1/predict, /v1/embed and /v1/attention with images; GET
/v1/models, /healthz, /readyz, /metrics and /openapi.json; in a browser, at /, a page that shows how a model sees. MODEL
is as in `vitral predict`; a model folder that is replaced is loaded again. Once it listens, one JSON line on stdout
says where: {{"url", "models"}}. Ctrl-C or SIGTERM end it after the requests that are there have their answers.
`vitral docs serving` says more.

key=default, meaning (type):

{keys}

examples:
  vitral serve vitral-digits
  curl -F image=@digit.png http://127.0.0.1:8000/v1/predict
  vitral serve runs/mine runs/other names=new,old engine=auto port=9000
  VITRAL_API_KEY=... vitral serve runs/mine host=0.0.0.0
  vitral serve runs/mine engine=ray ray.workers=4       in processes of a Ray cluster
"""
_NEEDED = ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client")


def run(arguments: Arguments) -> int:
    """Serve until a signal comes."""
    if arguments.help:
        print(page(HELP, ServeOptions, arguments.words), end="")
        return 0
    if not arguments.words:
        raise UserError("a model is wanted", hint="vitral serve MODEL [MODEL ...]")
    options = build(ServeOptions, with_overrides(ServeOptions, {}, arguments.pairs))
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"not installed: {', '.join(missing)}", where="serve", hint=install("serve"))
    from vitral.run.serve import serve

    return serve(arguments.words, options)

"""`vitral serve`."""

from __future__ import annotations

from importlib.util import find_spec

from vitral.cli.command import Arguments, command
from vitral.errors import UserError
from vitral.optional_imports import install
from vitral.run.command_options import ServeOptions

HELP = """usage: vitral serve MODEL... [key=value ...]

Serves predictions, features and attention over HTTP: POST /v1/predict, /v1/embed and /v1/attention with images; GET
/v1/models, /healthz, /readyz, /metrics and /openapi.json; in a browser, / shows a page that explains what a model sees.
MODEL is as in `vitral predict`; a model folder that is replaced is loaded again. When the server listens, it prints one
JSON line on stdout: {{"url", "models"}}. Ctrl-C or SIGTERM end it after the running requests have their responses.
`vitral docs serving` has the details.

{keys}

examples:
  vitral serve vitral-digits
  curl -F image=@digit.png http://127.0.0.1:8000/v1/predict
  vitral serve runs/mine runs/other names=new,old engine=auto port=9000
  VITRAL_API_KEY=... vitral serve runs/mine host=0.0.0.0
  vitral serve runs/mine engine=ray ray.workers=4       in processes of a Ray cluster
"""
_NEEDED = ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client")


@command(HELP, ServeOptions)
def run(arguments: Arguments, options: ServeOptions) -> int:
    """Serve until a signal."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"not installed: {', '.join(missing)}", where="serve", hint=install("serve"))
    from vitral.run.serve import serve

    return serve(arguments.words, options)

"""Serve on a Ray cluster: the same application in several processes behind one address."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from vitral.errors import RunFailed, UserError
from vitral.optional_imports import optional
from vitral.serve.ray_cluster import cluster, resources, share_out
from vitral.serve.server import listen_at

if TYPE_CHECKING:
    from fastapi import FastAPI

NAME = "vitral"
# Requests that Ray hands to a process before it holds others back: the application has its own queue, which refuses.
_AT_ONCE = 1000


@contextmanager
def deployed(
    make_app: Callable[[str], FastAPI], *, replicas: int | None, device: str, host: str, port: int, drain: float
) -> Generator[str]:
    """The application of so many processes, up while the block runs; gives its address, http://HOST:PORT.

    make_app: called once in each process, with the device to compute on (cpu or cuda); loads the models there. It can
    be pickled: a function of a module, or a `partial` of one. Relative paths mean there what they mean here, where the
    machine has this folder. drain: seconds that requests have to end. replicas, device: see `share_out`. Applications
    that others put beside it stay. Raises UserError for what does not fit, for a port that is taken and for a cluster
    that has a Ray Serve already, RunFailed where the application does not start.
    """
    listen_at(host, port).close()  # on an address that is taken Ray Serve would try for minutes
    with cluster() as ray:
        serve: Any = optional("ray.serve")
        _check_none_runs(serve)
        share = share_out(resources(ray), device, replicas)
        on, folder = "cuda" if share.gpus else "cpu", os.getcwd()

        def build() -> FastAPI:
            if os.path.isdir(folder):
                os.chdir(folder)
            return make_app(on)

        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        application: Any = serve.deployment(
            serve.ingress(build)(), name=NAME, num_replicas=share.workers, max_ongoing_requests=_AT_ONCE,
            graceful_shutdown_timeout_s=drain,
            ray_actor_options={"num_cpus": share.cpus, "num_gpus": share.gpus},
        ).bind()  # fmt: skip
        try:
            try:
                serve.start(http_options={"host": host, "port": port})
                serve.run(application, name=NAME, route_prefix="/")
            except (RuntimeError, ray.exceptions.RayError) as error:
                raise RunFailed(f"Ray Serve: {_why(serve.status().applications) or error}") from error
            yield f"http://{host}:{port}"
        finally:
            _end(serve)


def _check_none_runs(serve: Any) -> None:
    """Raises UserError for a cluster whose Ray Serve listens already: at an address of its own, which no later start
    changes."""
    status = serve.status()
    if status.proxies or status.applications:
        hint = "Take another cluster, or end that one's Ray Serve with all its applications: `serve shutdown`."
        got = "applications: " + (", ".join(status.applications) or "none")
        raise UserError("Ray Serve runs on this cluster already", where="RAY_ADDRESS", got=got, hint=hint)


def _end(serve: Any) -> None:
    """Our application, and the Ray Serve that was started for it, unless others use that by now."""
    if serve.status().applications.keys() <= {NAME}:
        serve.shutdown()
        return
    with suppress(TimeoutError):  # after a minute; the cluster continues to deploy it
        serve.delete(NAME)


def _why(applications: Mapping[str, Any]) -> str:
    """What the application raised in its processes, without the traceback; "" where Ray Serve does not know."""
    deployments = applications[NAME].deployments.values() if NAME in applications else ()
    text = "\n".join(deployment.message for deployment in deployments)
    raised = list(re.finditer(r"^[\w.]+(?:Error|Exception): ", text, re.MULTILINE))
    return text[raised[-1].end() :].strip() if raised else text.strip()

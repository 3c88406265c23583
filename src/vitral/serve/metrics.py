"""Prometheus metrics of the server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from vitral.serve.model_worker import ModelWorker

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters, gauges and histograms; docs/serving.md lists them."""

    def __init__(self, workers: Mapping[str, ModelWorker]) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("vitral_requests", "Requests answered", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "vitral_request_seconds", "From the first header to the end of the answer", ["route"], registry=registry,
            buckets=_SECONDS,
        )  # fmt: skip
        self.in_flight = Gauge("vitral_requests_in_flight", "Requests that wait for an answer", registry=registry)
        self.images = Counter("vitral_images", "Images or texts computed", ["model"], registry=registry)
        self.batch = Histogram(
            "vitral_batch_images", "Images or texts computed at once", ["model"], registry=registry, buckets=_IMAGES
        )
        self.reloads = Counter("vitral_reloads", "Replaced model folders", ["model", "result"], registry=registry)
        self.loaded = Gauge("vitral_model_loaded_time_seconds", "When loaded, since 1970", ["model"], registry=registry)
        queue = Gauge("vitral_queue_images", "Images, texts and calls that wait", ["model"], registry=registry)
        for name, worker in workers.items():
            queue.labels(name).set_function(lambda worker=worker: worker.waiting)
            self.loaded.labels(name).set_function(lambda worker=worker: worker.loaded)
            for metric, *more in ((self.images,), (self.batch,), (self.reloads, "ok"), (self.reloads, "failed")):
                metric.labels(name, *more)  # shown as 0 before the first

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def computed(self, model: str, count: int) -> None:
        """Count so many images or texts, computed at once."""
        self.images.labels(model).inc(count)
        self.batch.labels(model).observe(count)

    def text(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)

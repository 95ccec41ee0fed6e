"""What an operator watches, in Prometheus' words."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Meters:
    """The counters of one server.

    Args:
        inside: tells how many pictures are in the house.
        bodies: tells how many bytes of bodies are.
    """

    def __init__(self, inside: Callable[[], int], bodies: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "epmvg_requests", "Requests by route and HTTP status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "epmvg_request_seconds", "From request to answer.", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.pictures = Counter(
            "epmvg_pictures",
            "Pictures asked about, by whether they were still at hand.",
            ["kept"],
            registry=self.registry,
        )
        self.phrases = Counter("epmvg_phrases", "Phrases answered.", registry=self.registry)
        self.batches = Histogram(
            "epmvg_batch_questions",
            "Questions the model answered together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.model_seconds = Histogram(
            "epmvg_batch_seconds", "The model's time for a batch.", buckets=SECONDS, registry=self.registry
        )
        Gauge("epmvg_pictures_inside", "Pictures waiting or being looked at.", registry=self.registry).set_function(
            inside
        )
        Gauge(
            "epmvg_body_bytes_inside", "Bytes of bodies arriving or not decoded yet.", registry=self.registry
        ).set_function(bodies)

    def page(self) -> bytes:
        """Write all of them as Prometheus reads them."""
        return generate_latest(self.registry)

"""Metrics for Prometheus: requests and the time of their parts, queues, the size of the index."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from lexvla.errors import LexVLAError

__all__ = ["Metrics"]

logger = logging.getLogger(__name__)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ITEMS = (1, 2, 4, 8, 16, 32, 64)
# Workers share their metrics through files in the folder that this variable names.
_SHARED = "PROMETHEUS_MULTIPROC_DIR"


class _Size(Collector):
    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            value = self._count()
        except (LexVLAError, OSError) as error:
            # The other metrics are needed most when the index does not answer.
            logger.warning("the documents are not counted: %s", error)
            return
        yield GaugeMetricFamily("lexvla_index_documents", "Documents in the index.", value=value)


class Metrics:
    """The metrics of one application."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "lexvla_requests",
            "Requests, by route and status.",
            ("method", "route", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "lexvla_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "lexvla_stage_seconds",
            "What the parts of a request take: wait (for a thread), encode, search, commit.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "lexvla_model_batch_items",
            "Items of one call of the model.",
            ("call",),
            buckets=_ITEMS,
            registry=registry,
        )
        self.inside = Gauge(
            "lexvla_requests_inside",
            "Requests that are worked on, or wait for it.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.model_queue = Gauge(
            "lexvla_model_queue",
            "Calls that waited for the model when it last ended one.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.indexed = Counter(
            "lexvla_documents_indexed", "Documents committed by upserts.", registry=registry
        )

    def exposition(self, count: Callable[[], int]) -> bytes:
        """Return the metrics of all workers in Prometheus's text format, with a document count."""
        registry = self.registry
        if os.environ.get(_SHARED):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        size = CollectorRegistry()
        size.register(_Size(count))
        return generate_latest(registry) + generate_latest(size)

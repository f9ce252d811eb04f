"""/metrics: the engine's counters in Prometheus' format, read when asked."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tpuinfer.engine.metrics import Histogram, Metrics
from tpuinfer.server.bridge import Bridge

_GAUGES = (
    ("slots", "Requests that can run at once."),
    ("running", "Requests that hold a slot."),
    ("waiting", "Requests that wait for a slot."),
)
_COUNTERS = (
    ("steps", "Engine steps."),
    ("prompt_tokens", "Tokens of the prompts that got a slot."),
    ("generation_tokens", "Tokens generated."),
    ("decode_rows", "Rows that wanted tokens, summed over decode dispatches."),
    ("decode_slots", "Rows that there were, summed over decode dispatches."),
    ("recompiles", "Compiles since warm-up: 0, or something is wrong."),
)
_HISTOGRAMS = (
    ("ttft", "time_to_first_token_seconds", "From arrival to the first token."),
    ("inter_token", "inter_token_seconds", "Between two tokens of a request."),
    ("queue", "queue_seconds", "From arrival to a slot."),
)


class EngineCollector(Collector):
    """Nothing is counted twice: the numbers stay in the engine's `Metrics`."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def collect(self) -> Iterator[Metric]:
        ready = self._bridge.failure is None
        yield GaugeMetricFamily("tpuinfer_ready", "1 when requests are taken.", value=ready)
        metrics = self._bridge.metrics
        if metrics is not None:
            yield from _families(metrics)


def registry(bridge: Bridge) -> CollectorRegistry:
    """A registry of our own, so that no library's metrics mix in."""
    own = CollectorRegistry(auto_describe=False)
    own.register(EngineCollector(bridge))
    return own


def _families(metrics: Metrics) -> Iterator[Metric]:
    for name, words in _GAUGES:
        yield GaugeMetricFamily(f"tpuinfer_{name}", words, value=getattr(metrics, name))
    for name, words in _COUNTERS:
        yield CounterMetricFamily(f"tpuinfer_{name}", words, value=getattr(metrics, name))
    finished = CounterMetricFamily(
        "tpuinfer_requests_finished", "Requests that ended.", labels=["reason"]
    )
    for reason, count in metrics.finished.items():
        finished.add_metric([reason], count)
    yield finished
    for name, exported, words in _HISTOGRAMS:
        yield _histogram(f"tpuinfer_{exported}", words, getattr(metrics, name))


def _histogram(name: str, words: str, histogram: Histogram) -> Metric:
    buckets = [
        ("+Inf" if bound == float("inf") else str(bound), float(count))
        for bound, count in histogram.cumulative()
    ]
    return HistogramMetricFamily(name, words, buckets=buckets, sum_value=histogram.sum)

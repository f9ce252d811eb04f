"""/metrics: the engine's counters in Prometheus' format, read when asked.

Names end as vLLM's do where they mean the same, so that a dashboard needs another prefix only; the
exporter of a counter adds `_total`. Rings take the place of vLLM's pages.
"""

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
from tpuinfer.server.trail import HttpCounts

PREFIX = "tpuinfer:"

_LABELS = ["model_name"]
"""What dashboards filter by."""

_GAUGES = (
    ("num_requests_running", "running", "Requests that hold a slot, background ones included."),
    ("num_requests_waiting", "waiting", "Requests without a slot, background ones included."),
    ("num_background_running", "background_running", "Background requests that hold a slot."),
    ("num_background_waiting", "background_waiting", "Background requests that wait for a slot."),
    ("num_tokens_waiting", "waiting_tokens", "Tokens of the prompts of requests that wait."),
    ("slots", "slots", "Requests that can run at once."),
    ("kv_cache_usage_perc", "ring_usage", "The part of all rings that is taken; 1 is all."),
    ("ring_tokens", "ring_tokens", "Tokens that the rings hold now."),
    ("ring_capacity_tokens", "ring_capacity", "Tokens that all rings hold together."),
    ("weights_version", "version", "How often the weights were exchanged."),
)
_COUNTERS = (
    ("prompt_tokens", "prompt_tokens", "Tokens of the prompts that got a slot."),
    ("generation_tokens", "generation_tokens", "Tokens generated."),
    ("steps", "steps", "Engine steps."),
    ("decode_rows", "decode_rows", "Rows that wanted tokens, summed over decode dispatches."),
    ("decode_slots", "decode_slots", "Rows that there were, summed over decode dispatches."),
    ("num_preemptions", "preemptions", "Background requests that had to give up their slots."),
    ("recompiles", "recompiles", "Compiles since warm-up: 0, or something is wrong."),
)
_HISTOGRAMS = (
    ("time_to_first_token_seconds", "ttft", "From arrival to the first token."),
    ("inter_token_latency_seconds", "inter_token", "Between two tokens of a request."),
    ("e2e_request_latency_seconds", "latency", "From arrival to the last token."),
    ("request_queue_time_seconds", "queue", "From arrival to a slot."),
    ("request_prefill_time_seconds", "prefill", "From a slot to the first token."),
    ("request_decode_time_seconds", "decode", "From the first token to the last one."),
    ("request_prompt_tokens", "prompt_lengths", "Tokens of each prompt that got a slot."),
    ("request_generation_tokens", "generation_lengths", "Tokens of each whole answer."),
)


class EngineCollector(Collector):
    """Nothing is counted twice: the numbers stay in the engine's `Metrics`."""

    def __init__(self, bridge: Bridge, http: HttpCounts, model: str) -> None:
        self._bridge = bridge
        self._http = http
        self._model = model

    def collect(self) -> Iterator[Metric]:
        ready = self._bridge.failure is None
        yield GaugeMetricFamily(f"{PREFIX}ready", "1 when requests are taken.", value=ready)
        yield from _http_families(self._http)
        metrics = self._bridge.metrics
        if metrics is not None:
            yield from _families(metrics, self._model)


def registry(bridge: Bridge, http: HttpCounts, model: str) -> CollectorRegistry:
    """A registry of our own, so that no library's metrics mix in.

    Args:
      model: the name that it serves, the label `model_name` of whatever the engine counts.
    """
    own = CollectorRegistry(auto_describe=False)
    own.register(EngineCollector(bridge, http, model))
    return own


def _http_families(http: HttpCounts) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        f"{PREFIX}http_requests",
        "HTTP requests answered.",
        labels=["method", "route", "status"],
    )
    for labels, count in sorted(http.answered.items()):
        requests.add_metric(list(labels), count)
    yield requests
    errors = CounterMetricFamily(
        f"{PREFIX}errors", "HTTP requests that were refused or failed.", labels=["kind"]
    )
    for kind, count in sorted(http.errors.items()):
        errors.add_metric([kind], count)
    yield errors


def _families(metrics: Metrics, model: str) -> Iterator[Metric]:
    for name, attribute, words in _GAUGES:
        gauge = GaugeMetricFamily(PREFIX + name, words, labels=_LABELS)
        gauge.add_metric([model], getattr(metrics, attribute))
        yield gauge
    for name, attribute, words in _COUNTERS:
        yield _counter(name, words, model, getattr(metrics, attribute))
    finished = CounterMetricFamily(
        f"{PREFIX}request_success",
        "Requests that ended by themselves.",
        labels=[*_LABELS, "finished_reason"],
    )
    for reason, count in metrics.finished.items():
        if reason in ("stop", "length"):
            finished.add_metric([model, reason], count)
    yield finished
    words = "Requests whose client did not wait for the end."
    yield _counter("request_aborts", words, model, metrics.finished["abort"])
    words = "Requests that the engine could not finish."
    yield _counter("request_failures", words, model, metrics.finished["error"])
    for name, attribute, words in _HISTOGRAMS:
        yield _histogram(name, words, model, getattr(metrics, attribute))


def _counter(name: str, words: str, model: str, value: float) -> Metric:
    counter = CounterMetricFamily(PREFIX + name, words, labels=_LABELS)
    counter.add_metric([model], value)
    return counter


def _histogram(name: str, words: str, model: str, histogram: Histogram) -> Metric:
    buckets = [
        ("+Inf" if bound == float("inf") else str(float(bound)), float(count))
        for bound, count in histogram.cumulative()
    ]
    family = HistogramMetricFamily(PREFIX + name, words, labels=_LABELS)
    family.add_metric([model], buckets=buckets, sum_value=histogram.sum)
    return family

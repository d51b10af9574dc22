"""A gate's metrics for Prometheus: give :class:`trio_mlxgate.Gate` a :class:`PrometheusHook` as a hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_mlxgate.instrumentation import _metrics

try:
    import prometheus_client
except ImportError as missing:
    raise ImportError(
        "trio_mlxgate.instrumentation.prometheus needs the package prometheus-client: "
        "pip install 'trio-mlxgate[prometheus]' (from a clone: '.[prometheus]')"
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric as MetricFamily


class PrometheusHook(_metrics.MetricsHook):
    """Keeps the metrics of all gates that it is given to, in a registry of ``prometheus_client``.

    ::

        hook = PrometheusHook()
        fast = Gate(4, name="embedder", hooks=[LoggingHook(), hook])
        slow = Gate(1, name="writer", hooks=[LoggingHook(), hook])

    One hook serves any number of gates, in any threads: the label ``gate`` tells them apart, so each needs a name of
    its own. A scrape reads what the hook wrote down, never a gate, and may come from any thread.

    A gate tells nothing when it is made: its metrics appear with its first call (or change of capacity).

    Args:
      registry: where the metrics are registered; default: the registry that ``prometheus_client`` serves. None
        registers them nowhere: the hook is a collector, for ``register()`` and ``unregister()`` of any registry.
      priority_label: what the label ``priority`` says for a priority; default: the number. There are as many time
        series as there are labels, so a program with a priority for each user wants a few groups here. It must be
        quick, and give the same label whenever it is asked for the same priority.

    Raises:
      ValueError: the registry has metrics of these names already, as those of another PrometheusHook.
    """

    def __init__(
        self,
        registry: prometheus_client.CollectorRegistry | None = prometheus_client.REGISTRY,
        *,
        priority_label: Callable[[int], str] = _metrics.number_as_label,
    ) -> None:
        super().__init__(priority_label)
        # Without a registry of their own: the hook is registered for all, so that it is all of them or none.
        self._levels = {
            metric.name: prometheus_client.Gauge(
                _name(metric), metric.description, _labels(metric), unit=_unit(metric), registry=None
            )
            for metric in _metrics.LEVELS
        }
        self._counts = {
            metric.name: prometheus_client.Counter(
                _name(metric), metric.description, _labels(metric), unit=_unit(metric), registry=None
            )
            for metric in _metrics.COUNTS
        }
        self._times = {
            metric.name: prometheus_client.Histogram(
                _name(metric),
                metric.description,
                _labels(metric),
                unit=_unit(metric),
                registry=None,
                buckets=_metrics.BUCKETS,
            )
            for metric in _metrics.TIMES
        }
        if registry is None:
            return
        try:
            registry.register(self)
        except ValueError as taken:
            raise ValueError(
                "the registry has metrics named mlxgate_... already, as those of another PrometheusHook: give all "
                "gates the same hook, whose label 'gate' tells them apart, or name another registry"
            ) from taken

    def describe(self) -> Iterator[MetricFamily]:
        """The metrics without their values; for the registry."""
        for instrument in self._instruments():
            yield from instrument.describe()

    def collect(self) -> Iterator[MetricFamily]:
        """The metrics with their values; for the registry, from any thread."""
        for instrument in self._instruments():
            yield from instrument.collect()

    def _instruments(
        self,
    ) -> Iterator[prometheus_client.Gauge | prometheus_client.Histogram | prometheus_client.Counter]:
        yield from self._levels.values()
        yield from self._times.values()
        yield from self._counts.values()

    def _set(self, metric: _metrics.Metric, value: int, *attributes: str) -> None:
        self._levels[metric.name].labels(*attributes).set(value)

    def _add(self, metric: _metrics.Metric, change: int, *attributes: str) -> None:
        # To Prometheus a label that is empty is a label that is not there.
        instrument = self._levels.get(metric.name) or self._counts[metric.name]
        instrument.labels(*attributes).inc(change)

    def _record(self, metric: _metrics.Metric, seconds: float, *attributes: str) -> None:
        self._times[metric.name].labels(*attributes).observe(seconds)


# As OpenTelemetry's exporters would rename them, so that a dashboard serves both hooks.


def _name(metric: _metrics.Metric) -> str:
    """Without the unit and ``_total``, which the client appends."""
    return metric.name.replace(".", "_")


def _unit(metric: _metrics.Metric) -> str:
    return "seconds" if metric.unit == "s" else ""


def _labels(metric: _metrics.Metric) -> list[str]:
    return [attribute.replace(".", "_") for attribute in metric.attributes]

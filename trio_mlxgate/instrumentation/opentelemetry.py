"""A gate's metrics for OpenTelemetry: give :class:`trio_mlxgate.Gate` an :class:`OpenTelemetryHook` as a hook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trio_mlxgate.instrumentation import _metrics

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
except ImportError as missing:
    raise ImportError(
        "trio_mlxgate.instrumentation.opentelemetry needs the package opentelemetry-api: "
        "pip install 'trio-mlxgate[otel]' (from a clone: '.[otel]')"
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Callable

# The task that causes an event is not always the one whose call it tells of: who gives a slot back lets another in.
# A measurement taken in that task's context would have its trace for an example; so none is taken along. (A context
# with nothing in it would not do: the SDK takes it for none, and so for the current one.)
_NO_TRACE: Final[Context] = trace.set_span_in_context(trace.INVALID_SPAN, Context())


class OpenTelemetryHook(_metrics.MetricsHook):
    """Gives the metrics of all gates that it is given to to OpenTelemetry.

    ::

        hook = OpenTelemetryHook()
        fast = Gate(4, name="embedder", hooks=[LoggingHook(), hook])
        slow = Gate(1, name="writer", hooks=[LoggingHook(), hook])

    One hook serves any number of gates, in any threads: the attribute ``gate`` tells them apart, so each needs a name
    of its own. An export reads what the hook told OpenTelemetry, never a gate, and may happen in any thread. Without
    an SDK, which is yours to install and to set up, nothing is counted.

    A gate tells nothing when it is made: its metrics appear with its first call (or change of capacity).

    Args:
      meter_provider: where the meter is from; None is the global one, also if it is set only later.
      priority_label: what the attribute ``priority`` says for a priority; default: the number. There are as many time
        series as there are labels, so a program with a priority for each user wants a few groups here. It must be
        quick, and give the same label whenever it is asked for the same priority.
    """

    def __init__(
        self,
        meter_provider: metrics.MeterProvider | None = None,
        *,
        priority_label: Callable[[int], str] = _metrics.number_as_label,
    ) -> None:
        super().__init__(priority_label)
        meter = metrics.get_meter("trio_mlxgate", meter_provider=meter_provider)
        # No gauges: where an export has the changes since the last one, or the SDK is older than 1.45, a gauge is not
        # exported unless it was set since, so that a slot held for a quarter of an hour would be seen once.
        self._levels = {
            metric.name: meter.create_up_down_counter(metric.name, metric.unit, metric.description)
            for metric in _metrics.LEVELS
        }
        self._counts = {
            metric.name: meter.create_counter(metric.name, metric.unit, metric.description)
            for metric in _metrics.COUNTS
        }
        self._times = {
            metric.name: meter.create_histogram(
                metric.name, metric.unit, metric.description, explicit_bucket_boundaries_advisory=_metrics.BUCKETS
            )
            for metric in _metrics.TIMES
        }
        # What was told last of each level that comes as a whole, by its name and attributes. A gate has one run at a
        # time, so two threads never come here with the same ones.
        self._last: dict[tuple[str, tuple[str, ...]], int] = {}

    def _set(self, metric: _metrics.Metric, value: int, *attributes: str) -> None:
        key = (metric.name, attributes)
        last = self._last.get(key)
        if value != last:
            self._last[key] = value
            self._add(metric, value - (last or 0), *attributes)

    def _add(self, metric: _metrics.Metric, change: int, *attributes: str) -> None:
        instrument = self._levels.get(metric.name) or self._counts[metric.name]
        instrument.add(change, _named(metric, attributes), _NO_TRACE)

    def _record(self, metric: _metrics.Metric, seconds: float, *attributes: str) -> None:
        self._times[metric.name].record(seconds, _named(metric, attributes), _NO_TRACE)


def _named(metric: _metrics.Metric, attributes: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in zip(metric.attributes, attributes, strict=True) if value}

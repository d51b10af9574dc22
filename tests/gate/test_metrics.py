"""The hooks that keep metrics: both libraries are told the same, and what they show is what the events say."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import pytest
import trio
import trio.testing

from tests.gate.helpers import BACKGROUND, FOREGROUND, Log, holder, job
from trio_mlxgate import Gate, Priority, WaitTooLong
from trio_mlxgate.instrumentation import (
    KINDS,
    Abandoned,
    CallDetails,
    Cancelled,
    CapacityChanged,
    Details,
    Ended,
    FellBack,
    GivenUp,
    Granted,
    Orphaned,
    Overdue,
    Queued,
    Rejected,
    Released,
    Starving,
    Superseded,
    WaitsForParent,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

    from trio_mlxgate.instrumentation import Hook

Readings = dict[str, float]
"""By name and labels, as Prometheus shows them: ``{"mlxgate_slot_capacity{gate=macmini}": 1}``."""


class Subject(Protocol):
    """A kind of hook, and how its numbers are read."""

    def hook(self, priority_label: Callable[[int], str] | None = None) -> Hook: ...
    def read(self) -> Readings: ...


def shown(name: str, labels: dict[str, str]) -> str:
    return f"{name}{{{','.join(f'{key}={value}' for key, value in sorted(labels.items()) if value)}}}"


class InPrometheus:
    def __init__(self) -> None:
        self.registry = pytest.importorskip("prometheus_client").CollectorRegistry()

    def hook(self, priority_label: Callable[[int], str] | None = None) -> Hook:
        from trio_mlxgate.instrumentation.prometheus import PrometheusHook

        return PrometheusHook(self.registry, **({} if priority_label is None else {"priority_label": priority_label}))

    def read(self) -> Readings:
        """What a scrape gives, through the text that it is sent as; without the buckets and the times of creation."""
        client, parser = pytest.importorskip("prometheus_client"), pytest.importorskip("prometheus_client.parser")
        text = client.generate_latest(self.registry).decode()
        return {
            shown(sample.name, sample.labels): sample.value
            for family in parser.text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.name.endswith(("_bucket", "_created"))
        }


class InOpenTelemetry:
    def __init__(self) -> None:
        pytest.importorskip("opentelemetry.sdk")
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def hook(self, priority_label: Callable[[int], str] | None = None) -> Hook:
        from trio_mlxgate.instrumentation.opentelemetry import OpenTelemetryHook

        return OpenTelemetryHook(
            self.provider, **({} if priority_label is None else {"priority_label": priority_label})
        )

    def metrics(self) -> list[Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        return [m for resource in data.resource_metrics for scope in resource.scope_metrics for m in scope.metrics]

    def read(self) -> Readings:
        """What an export gives, renamed by the rules for exporters to Prometheus."""
        readings: Readings = {}
        for metric in self.metrics():
            name = metric.name.replace(".", "_") + {"s": "_seconds"}.get(metric.unit, "")
            for point in metric.data.data_points:
                labels = {key.replace(".", "_"): str(value) for key, value in point.attributes.items()}
                if hasattr(point, "bucket_counts"):
                    readings[shown(f"{name}_count", labels)] = point.count
                    readings[shown(f"{name}_sum", labels)] = point.sum
                else:
                    total = "_total" if getattr(metric.data, "is_monotonic", False) else ""
                    readings[shown(name + total, labels)] = point.value
        return readings


@pytest.fixture(params=[InPrometheus, InOpenTelemetry])
def subject(request: pytest.FixtureRequest) -> Subject:
    made: Subject = request.param()
    return made


COUNTED = tuple(kind for kind in KINDS if kind not in {WaitsForParent, Ended})


def told(kind: type[Details], **numbers: Any) -> Details:
    known: dict[str, Any] = {"gate": "macmini", "capacity": 1, "in_flight": 0, "queue_length": 0}
    if issubclass(kind, CallDetails):
        known |= {"priority": 100, "seq": 1, "queued": False, "waited": 0.0, "held": 0.0}
    if kind is Rejected:
        known["reason"] = "would_block"
    if kind is Superseded:
        known["by"] = 2
    if kind is CapacityChanged:
        known["before"] = 1
    if kind is Orphaned:
        known["task"] = "reader"
    if kind is FellBack:
        known |= {"priority": 100, "waited": 0.0, "reason": "unreachable", "to": "https://cloud.example"}
    return kind(**(known | numbers))


LEVELS = {"mlxgate_slot_capacity{gate=macmini}": 1, "mlxgate_slot_in_flight{gate=macmini}": 0}
CALL = "gate=macmini,priority=100"


# ---- what each event means ----


def test_there_is_nothing_before_the_first_event(subject: Subject) -> None:
    subject.hook()
    assert subject.read() == {}


@pytest.mark.parametrize(
    ("details", "readings"),
    [
        (told(Queued, queued=True), {f"mlxgate_call_pending{{{CALL}}}": 1}),
        (
            told(Granted),
            {
                f"mlxgate_slot_wait_time_seconds_count{{{CALL.replace('pri', 'outcome=granted,pri')}}}": 1,
                f"mlxgate_slot_wait_time_seconds_sum{{{CALL.replace('pri', 'outcome=granted,pri')}}}": 0,
                f"mlxgate_call_outcomes_total{{{CALL.replace('pri', 'outcome=granted,pri')}}}": 1,
            },
        ),
        (
            told(Released, waited=7.0, held=2.5),
            {
                f"mlxgate_slot_use_time_seconds_count{{{CALL}}}": 1,
                f"mlxgate_slot_use_time_seconds_sum{{{CALL}}}": 2.5,
            },
        ),
        (told(Cancelled), {f"mlxgate_call_outcomes_total{{{CALL.replace('pri', 'outcome=cancelled,pri')}}}": 1}),
        (
            told(Rejected, reason="queue_full"),
            {"mlxgate_call_outcomes_total{error_type=queue_full,gate=macmini,outcome=rejected,priority=100}": 1},
        ),
        (
            told(Superseded),
            {"mlxgate_call_outcomes_total{error_type=superseded,gate=macmini,outcome=superseded,priority=100}": 1},
        ),
        (told(Starving, queued=True, waited=300.0), {f"mlxgate_call_starving_total{{{CALL}}}": 1}),
        (told(Abandoned, held=1.0), {f"mlxgate_call_abandoned_total{{{CALL}}}": 1}),
        (told(GivenUp, held=70.0), {f"mlxgate_call_given_up_total{{{CALL}}}": 1}),
        (told(FellBack), {"mlxgate_call_fallbacks_total{error_type=unreachable,gate=macmini,priority=100}": 1}),
        (told(Overdue, held=70.0), {f"mlxgate_slot_overdue_total{{{CALL}}}": 1}),
        (told(Orphaned, held=70.0), {f"mlxgate_slot_orphaned_total{{{CALL}}}": 1}),
        (told(CapacityChanged), {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Details) else "",
)
def test_what_each_event_changes_of_a_call_that_never_queued(
    subject: Subject, details: Details, readings: Readings
) -> None:
    subject.hook()(details)
    assert subject.read() == LEVELS | readings


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [(Granted, "granted"), (Cancelled, "cancelled"), (Rejected, "rejected"), (Superseded, "superseded")],
)
def test_who_leaves_the_queue_waits_no_more_and_waited_so_long(
    subject: Subject, kind: type[Details], outcome: str
) -> None:
    hook = subject.hook()
    hook(told(Queued, queued=True))
    hook(told(Queued, queued=True, seq=2))
    hook(told(kind, queued=True, waited=1.5))
    readings = subject.read()
    assert readings[f"mlxgate_call_pending{{{CALL}}}"] == 1
    wait = f"{{gate=macmini,outcome={outcome},priority=100}}"
    assert readings[f"mlxgate_slot_wait_time_seconds_count{wait}"] == 1
    assert readings[f"mlxgate_slot_wait_time_seconds_sum{wait}"] == 1.5


def test_levels_follow_the_gate_up_and_down_and_stay(subject: Subject) -> None:
    hook = subject.hook()
    seen = []
    for capacity, in_flight in [(2, 1), (2, 2), (5, 2), (0, 2), (0, 1), (0, 0)]:
        hook(told(Released, capacity=capacity, in_flight=in_flight))
        for _ in range(2):  # a second scrape, with nothing in between, sees the same
            readings = subject.read()
            seen.append(
                (readings["mlxgate_slot_capacity{gate=macmini}"], readings["mlxgate_slot_in_flight{gate=macmini}"])
            )
    assert seen[::2] == seen[1::2] == [(2, 1), (2, 2), (5, 2), (0, 2), (0, 1), (0, 0)]


def test_gates_and_priorities_are_told_apart(subject: Subject) -> None:
    hook = subject.hook()
    hook(told(Queued, queued=True, gate="a", capacity=3, priority=0))
    hook(told(Queued, queued=True, gate="a", capacity=3, priority=-5))
    hook(told(Queued, queued=True, gate="b", capacity=4, priority=Priority.FOREGROUND))
    readings = subject.read()
    assert {name: value for name, value in readings.items() if "in_flight" not in name} == {
        "mlxgate_slot_capacity{gate=a}": 3,
        "mlxgate_slot_capacity{gate=b}": 4,
        "mlxgate_call_pending{gate=a,priority=0}": 1,
        "mlxgate_call_pending{gate=a,priority=-5}": 1,
        "mlxgate_call_pending{gate=b,priority=0}": 1,
    }


def test_priorities_may_be_grouped(subject: Subject) -> None:
    hook = subject.hook(lambda priority: "person" if priority < 100 else "machine")
    for priority in (0, 7, 100):
        hook(told(Queued, queued=True, priority=priority))
    hook(told(Granted, queued=True, priority=0))
    readings = subject.read()
    assert readings["mlxgate_call_pending{gate=macmini,priority=person}"] == 1
    assert readings["mlxgate_call_pending{gate=macmini,priority=machine}"] == 1
    assert readings["mlxgate_call_outcomes_total{gate=macmini,outcome=granted,priority=person}"] == 1


def test_both_hooks_give_the_same_under_the_same_names() -> None:
    subjects: list[Subject] = [InPrometheus(), InOpenTelemetry()]
    for subject in subjects:
        hook = subject.hook()
        for kind in COUNTED:
            hook(told(kind, capacity=2, in_flight=1))
    in_prometheus, in_opentelemetry = (subject.read() for subject in subjects)
    assert in_prometheus == in_opentelemetry
    assert len(in_prometheus) == 17


@attrs.frozen(kw_only=True)
class Unheard(CallDetails):
    """A kind of details that a later version may have."""


def test_interest_is_in_the_kinds_that_change_something(subject: Subject) -> None:
    hook = subject.hook()
    assert all(hook.interest(kind)() for kind in COUNTED)
    assert hook.interest(Released, Granted)()
    assert hook.interest(Unheard, Granted)()
    assert not hook.interest(Unheard)()
    assert not hook.interest()()


def test_a_kind_that_is_unknown_changes_nothing(subject: Subject) -> None:
    subject.hook()(told(Unheard, queued=True))
    assert subject.read() == {}


def test_one_hook_takes_the_events_of_many_threads(subject: Subject) -> None:
    hook = subject.hook()

    def gate_of_its_own(name: str) -> None:
        for _ in range(200):
            hook(told(Queued, gate=name, queued=True, in_flight=1))
            hook(told(Granted, gate=name, queued=True, waited=1.0, in_flight=2))

    threads = [threading.Thread(target=gate_of_its_own, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        subject.read()
    for thread in threads:
        thread.join()
    readings = subject.read()
    for name in "abcd":
        assert readings[f"mlxgate_call_pending{{gate={name},priority=100}}"] == 0
        assert readings[f"mlxgate_slot_in_flight{{gate={name}}}"] == 2
        assert readings[f"mlxgate_call_outcomes_total{{gate={name},outcome=granted,priority=100}}"] == 200


# ---- what is one library's own ----


def test_a_second_hook_on_a_registry_says_what_to_do_and_leaves_the_first_alone() -> None:
    subject = InPrometheus()
    first = subject.hook()
    with pytest.raises(ValueError, match=r"give all gates the same hook, .* or name another registry"):
        subject.hook()
    first(told(CapacityChanged))
    assert subject.read() == LEVELS
    subject.registry.unregister(first)
    subject.hook()
    assert subject.read() == {}


def test_a_name_that_is_taken_leaves_nothing_in_the_registry() -> None:
    subject, client = InPrometheus(), pytest.importorskip("prometheus_client")
    foreign = client.Gauge("mlxgate_slot_overdue_total", "Somebody else's.", registry=subject.registry)
    with pytest.raises(ValueError, match="the registry has metrics named"):
        subject.hook()
    subject.registry.unregister(foreign)
    subject.hook()


def test_a_hook_may_be_registered_later() -> None:
    subject, client = InPrometheus(), pytest.importorskip("prometheus_client")
    from trio_mlxgate.instrumentation.prometheus import PrometheusHook

    before = list(client.REGISTRY.collect())
    hook = PrometheusHook(None)
    hook(told(CapacityChanged))
    assert [family.name for family in client.REGISTRY.collect()] == [family.name for family in before]
    subject.registry.register(hook)
    assert subject.read() == LEVELS


def test_the_registry_of_the_client_is_the_default() -> None:
    client = pytest.importorskip("prometheus_client")
    from trio_mlxgate.instrumentation.prometheus import PrometheusHook

    hook = PrometheusHook()
    try:
        hook(told(CapacityChanged, capacity=3))
        assert client.REGISTRY.get_sample_value("mlxgate_slot_capacity", {"gate": "macmini"}) == 3
    finally:
        client.REGISTRY.unregister(hook)


def test_types_and_help_in_the_text_of_a_scrape() -> None:
    subject, client = InPrometheus(), pytest.importorskip("prometheus_client")
    subject.hook()
    text = client.generate_latest(subject.registry).decode()
    types = {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}
    assert types == {
        "mlxgate_slot_capacity": "gauge",
        "mlxgate_slot_in_flight": "gauge",
        "mlxgate_call_pending": "gauge",
        "mlxgate_slot_wait_time_seconds": "histogram",
        "mlxgate_slot_use_time_seconds": "histogram",
        "mlxgate_call_outcomes_total": "counter",
        "mlxgate_call_starving_total": "counter",
        "mlxgate_slot_overdue_total": "counter",
        "mlxgate_slot_orphaned_total": "counter",
        "mlxgate_call_fallbacks_total": "counter",
        "mlxgate_call_abandoned_total": "counter",
        "mlxgate_call_given_up_total": "counter",
    }
    assert "# HELP mlxgate_slot_wait_time_seconds How long a call stood in the queue" in text


def test_buckets_suit_calls_of_minutes() -> None:
    subject = InPrometheus()
    subject.hook()(told(Released, held=400.0))
    labels = {"gate": "macmini", "priority": "100"}

    def below(bound: str) -> object:
        return subject.registry.get_sample_value("mlxgate_slot_use_time_seconds_bucket", labels | {"le": bound})

    assert [below(bound) for bound in ("0.01", "300.0", "600.0", "1800.0", "+Inf")] == [0, 0, 1, 1, 1]
    exported = InOpenTelemetry()
    exported.hook()(told(Released, held=400.0))
    (point,) = next(m for m in exported.metrics() if m.name == "mlxgate.slot.use_time").data.data_points
    (upper,) = (bound for bound, count in zip(point.explicit_bounds, point.bucket_counts, strict=False) if count)
    assert (point.explicit_bounds[0], upper, point.explicit_bounds[-1]) == (0.01, 600, 1800)


def test_names_and_units_in_opentelemetry() -> None:
    subject = InOpenTelemetry()
    hook = subject.hook()
    for kind in COUNTED:
        hook(told(kind))
    assert {metric.name: metric.unit for metric in subject.metrics()} == {
        "mlxgate.slot.capacity": "{slot}",
        "mlxgate.slot.in_flight": "{slot}",
        "mlxgate.slot.wait_time": "s",
        "mlxgate.slot.use_time": "s",
        "mlxgate.slot.overdue": "{slot}",
        "mlxgate.slot.orphaned": "{slot}",
        "mlxgate.call.pending": "{call}",
        "mlxgate.call.outcomes": "{call}",
        "mlxgate.call.starving": "{call}",
        "mlxgate.call.fallbacks": "{call}",
        "mlxgate.call.abandoned": "{call}",
        "mlxgate.call.given_up": "{call}",
    }


def test_an_attribute_without_a_value_is_missing_in_opentelemetry() -> None:
    subject = InOpenTelemetry()
    hook = subject.hook()
    hook(told(Granted))
    hook(told(Rejected, reason="wait_too_long"))
    (metric,) = (metric for metric in subject.metrics() if metric.name == "mlxgate.call.outcomes")
    assert sorted([sorted(point.attributes) for point in metric.data.data_points]) == [
        ["error.type", "gate", "outcome", "priority"],
        ["gate", "outcome", "priority"],
    ]


def test_several_hooks_on_one_provider_count_together(caplog: pytest.LogCaptureFixture) -> None:
    subject = InOpenTelemetry()
    for name in ("a", "b", "b"):
        subject.hook()(told(Granted, gate=name))
    readings = subject.read()
    assert readings["mlxgate_call_outcomes_total{gate=a,outcome=granted,priority=100}"] == 1
    assert readings["mlxgate_call_outcomes_total{gate=b,outcome=granted,priority=100}"] == 2
    assert not caplog.records


def test_a_provider_that_is_set_later_is_told() -> None:
    """In a process of its own, since a program's provider can be set only once."""
    pytest.importorskip("opentelemetry.sdk")
    code = (
        "from opentelemetry import metrics\n"
        "from opentelemetry.sdk.metrics import MeterProvider\n"
        "from opentelemetry.sdk.metrics.export import InMemoryMetricReader\n"
        "from trio_mlxgate.instrumentation import CapacityChanged\n"
        "from trio_mlxgate.instrumentation.opentelemetry import OpenTelemetryHook\n"
        "hook, reader = OpenTelemetryHook(), InMemoryMetricReader()\n"
        "metrics.set_meter_provider(MeterProvider([reader]))\n"
        "hook(CapacityChanged(gate='macmini', capacity=3, in_flight=0, queue_length=0, before=1))\n"
        "assert '\"mlxgate.slot.capacity\"' in reader.get_metrics_data().to_json()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_trace_is_taken_for_an_example() -> None:
    """The task that gives a slot back, and its trace, have nothing to do with the wait of who gets it."""
    subject = InOpenTelemetry()
    from opentelemetry import trace
    from opentelemetry.context import attach, detach

    span = trace.NonRecordingSpan(trace.SpanContext(1, 1, is_remote=False, trace_flags=trace.TraceFlags(1)))
    token = attach(trace.set_span_in_context(span))
    try:
        subject.hook()(told(Granted, queued=True, waited=5.0))
    finally:
        detach(token)
    assert not [e for metric in subject.metrics() for point in metric.data.data_points for e in point.exemplars]


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("opentelemetry", "opentelemetry", "otel")],
)
def test_where_the_library_is_missing_the_extra_is_named(module: str, package: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"try:\n    import trio_mlxgate.instrumentation.{module}\n"
        f"except ImportError as error:\n    assert \"pip install 'trio-mlxgate[{extra}]'\" in str(error)\n"
        "else:\n    raise AssertionError('imported')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- with a gate ----


async def test_a_gate_with_a_queue(autojump_clock: MockClock, subject: Subject) -> None:
    gate, log = Gate(1, name="macmini", hooks=[subject.hook()]), Log()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(job, gate, log, "digest", BACKGROUND, 1.5)
        nursery.start_soon(job, gate, log, "digest", BACKGROUND, 2, 0.5)
        nursery.start_soon(job, gate, log, "person", FOREGROUND, 0.25, 1)
        await trio.sleep(1.25)
        readings = subject.read()
        assert readings["mlxgate_slot_in_flight{gate=macmini}"] == 1
        assert readings["mlxgate_call_pending{gate=macmini,priority=100}"] == 1
        assert readings["mlxgate_call_pending{gate=macmini,priority=0}"] == 1
    person, digest = "gate=macmini,priority=0", "gate=macmini,priority=100"
    person_granted, digest_granted = (f"gate=macmini,outcome=granted,priority={p}" for p in (0, 100))
    assert subject.read() == pytest.approx(
        {
            "mlxgate_slot_capacity{gate=macmini}": 1,
            "mlxgate_slot_in_flight{gate=macmini}": 0,
            f"mlxgate_call_pending{{{person}}}": 0,
            f"mlxgate_call_pending{{{digest}}}": 0,
            f"mlxgate_call_outcomes_total{{{person_granted}}}": 1,
            f"mlxgate_call_outcomes_total{{{digest_granted}}}": 2,
            f"mlxgate_slot_wait_time_seconds_count{{{person_granted}}}": 1,
            f"mlxgate_slot_wait_time_seconds_sum{{{person_granted}}}": 0.5,
            f"mlxgate_slot_wait_time_seconds_count{{{digest_granted}}}": 2,
            f"mlxgate_slot_wait_time_seconds_sum{{{digest_granted}}}": 1.25,
            f"mlxgate_slot_use_time_seconds_count{{{person}}}": 1,
            f"mlxgate_slot_use_time_seconds_sum{{{person}}}": 0.25,
            f"mlxgate_slot_use_time_seconds_count{{{digest}}}": 2,
            f"mlxgate_slot_use_time_seconds_sum{{{digest}}}": 3.5,
        }
    )


async def test_a_gate_that_turns_calls_away(autojump_clock: MockClock, subject: Subject) -> None:
    gate, end = Gate(1, name="macmini", hooks=[subject.hook()]), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        with pytest.raises(WaitTooLong):
            async with gate.slot(max_wait=3):
                pass
        with pytest.raises(trio.WouldBlock), gate.slot_nowait():
            pass
        async with trio.open_nursery() as impatient:
            impatient.start_soon(holder, gate, end)
            await trio.sleep(2)
            impatient.cancel_scope.cancel()
        readings = subject.read()
        end.set()
    refused = "mlxgate_call_outcomes_total{{error_type={},gate=macmini,outcome=rejected,priority=100}}"
    waits = "mlxgate_slot_wait_time_seconds_sum{{gate=macmini,outcome={},priority=100}}"
    assert readings[refused.format("wait_too_long")] == 1
    assert readings[refused.format("would_block")] == 1
    assert readings["mlxgate_call_outcomes_total{gate=macmini,outcome=cancelled,priority=100}"] == 1
    assert readings["mlxgate_call_pending{gate=macmini,priority=100}"] == 0
    assert readings[waits.format("rejected")] == pytest.approx(3)
    assert readings[waits.format("rejected").replace("_sum", "_count")] == 1
    assert readings[waits.format("cancelled")] == pytest.approx(2)


def test_a_gate_whose_capacity_changes(subject: Subject) -> None:
    gate = Gate(1, name="macmini", hooks=[subject.hook()])
    gate.capacity = 4
    assert subject.read() == LEVELS | {"mlxgate_slot_capacity{gate=macmini}": 4}


async def test_a_gate_with_calls_that_starve_and_responses_that_nobody_reads(
    autojump_clock: MockClock, subject: Subject
) -> None:
    gate, end = Gate(1, name="macmini", starvation_warning=4, hooks=[subject.hook()]), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        nursery.start_soon(holder, gate, end)
        await trio.sleep(5)
        end.set()
    detached = await gate.acquire_detached(hold_timeout=1)
    await trio.sleep(3)
    detached.release()
    readings = subject.read()
    assert readings[f"mlxgate_call_starving_total{{{CALL}}}"] == 1
    assert readings[f"mlxgate_slot_overdue_total{{{CALL}}}"] == 1


async def test_a_scrape_from_another_thread_while_the_gate_works(subject: Subject) -> None:
    """Not on the virtual clock, which would run on while the thread reads."""
    gate, end = Gate(2, name="macmini", hooks=[subject.hook()]), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(holder, gate, end)
        await nursery.start(holder, gate, end)
        nursery.start_soon(holder, gate, end, FOREGROUND)
        await trio.testing.wait_all_tasks_blocked()
        readings = await trio.to_thread.run_sync(subject.read)
        end.set()
    assert readings["mlxgate_slot_capacity{gate=macmini}"] == 2
    assert readings["mlxgate_slot_in_flight{gate=macmini}"] == 2
    assert readings["mlxgate_call_pending{gate=macmini,priority=0}"] == 1


async def test_one_hook_for_several_gates(subject: Subject) -> None:
    hook = subject.hook()
    gates = [Gate(capacity, name=f"gate {capacity}", hooks=[hook]) for capacity in (1, 2)]
    async with gates[0].slot(), gates[1].slot(), trio.open_nursery() as nursery:
        await nursery.start(holder, gates[1], trio.Event())
        readings = subject.read()
        nursery.cancel_scope.cancel()
    assert readings["mlxgate_slot_in_flight{gate=gate 1}"] == 1
    assert readings["mlxgate_slot_in_flight{gate=gate 2}"] == 2

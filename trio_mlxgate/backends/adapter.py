"""A model behind a gate: what a program asks, and how a server of OpenAI's API is asked for it."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

import attrs
import httpx
import trio

from trio_mlxgate.backends._chat_call import ChatCall
from trio_mlxgate.backends._line import Line, current_run
from trio_mlxgate.backends._settings import base_url_of, headers_of, instance_of, kind_of, names_of, optional, text
from trio_mlxgate.backends._wire import WireTransport
from trio_mlxgate.backends.chat_stream import ChatStream
from trio_mlxgate.backends.gates import current_endpoint_gates
from trio_mlxgate.backends.limits import ChatLimits
from trio_mlxgate.backends.prober import Prober
from trio_mlxgate.core.chat_requests import chat_body, check_max_tokens, check_temperature
from trio_mlxgate.core.checks import check_seconds
from trio_mlxgate.core.endpoints import name_as_spelled
from trio_mlxgate.core.readings import Health, OwnWork
from trio_mlxgate.endpoint_gates import EndpointGates
from trio_mlxgate.errors import UnknownModel
from trio_mlxgate.gate import Gate
from trio_mlxgate.httpx import GateTransport
from trio_mlxgate.options import RequestOptions
from trio_mlxgate.priority import Priority

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from types import TracebackType

    from trio_mlxgate.backends.kinds.base import ServerKind
    from trio_mlxgate.core.chat_requests import Messages
    from trio_mlxgate.core.completions import Completion
    from trio_mlxgate.core.readings import Reading, Status
    from trio_mlxgate.outer_deadline import OuterDeadline

_SHORTEST_SECRET: Final = 6
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@attrs.define(eq=False, kw_only=True, repr=False, on_setattr=attrs.setters.frozen)
class ModelAdapter:
    """A model that a server of OpenAI's API has, asked through the gate of the server's endpoint.

    ::

        async with ModelAdapter(base_url="http://macmini.local:8080/v1", model="mlx-community/Qwen3-8B-4bit") as model:
            answer = await model.chat("Say hello.", priority=Priority.FOREGROUND)
            print(answer.text)

    A key goes into ``headers={"Authorization": "Bearer ..."}``; there is no ``api_key``. For trio alone.

    It always asks the server for a stream, and puts plain answers together itself: so a caller who leaves frees the
    server, and a server that hangs is noticed. An answer is one if its ``finish_reason`` has come, whatever HTTP says.
    May be made anywhere, at module level too; each run starts clean.

    Raises:
      TypeError, ValueError: a setting isn't as described.
    """

    base_url: str = attrs.field(converter=base_url_of)
    """As OpenAI's SDK takes it, such as ``http://macmini.local:8080/v1``. Without a path, /v1 is meant."""

    name: str = attrs.field(
        default=attrs.Factory(lambda self: name_as_spelled(self.base_url), takes_self=True), validator=text
    )
    """What errors and reports call it; by default host and port."""

    model: str | None = attrs.field(default=None, validator=text)
    """What each request names: one spelling, since a server that reads another may unload its model. None: requests
    name none, and the server takes its own."""

    aliases: frozenset[str] = attrs.field(default=frozenset(), converter=names_of)
    """Other names that callers may use for the model; the server never sees them."""

    system_prompt: str | None = attrs.field(default=None, validator=text)
    """Stands before all messages, unless they begin with a system message of their own."""

    temperature: float | None = attrs.field(default=None, validator=optional(check_temperature))
    """None: as the server has it."""

    max_tokens: int | None = attrs.field(default=None, validator=optional(check_max_tokens))
    """The longest answer; None: as the server has it."""

    headers: httpx.Headers = attrs.field(factory=httpx.Headers, converter=headers_of)
    """Of each request, such as ``{"Authorization": "Bearer ..."}``. Never shown anywhere."""

    hold_timeout: float = attrs.field(default=300.0)
    """Seconds that an answer may take from the grant of the slot to its end."""

    limits: ChatLimits = attrs.field(factory=ChatLimits, validator=instance_of(ChatLimits, "ChatLimits(...)"))
    """How long the server may be silent."""

    kind: ServerKind | None = attrs.field(default=None, converter=kind_of)
    """What kind of server it is, or the name of a kind; None: the probes find out. Without one the server is taken not
    to keep connections, if its URL is http."""

    gate: Gate | EndpointGates | None = attrs.field(
        default=None, validator=instance_of((Gate, EndpointGates, type(None)), "a Gate, EndpointGates, or None")
    )
    """None: that of the endpoint in this run, from :func:`current_endpoint_gates`."""

    transport: httpx.AsyncBaseTransport | None = attrs.field(
        default=None,
        validator=instance_of((httpx.AsyncBaseTransport, type(None)), "an httpx.AsyncBaseTransport, or None"),
    )
    """What sends the requests, under the gate; for tests. None: one that is made in each run."""

    _current: Line | None = attrs.field(default=None, init=False, on_setattr=attrs.setters.NO_OP)

    def __attrs_post_init__(self) -> None:
        if check_seconds("hold_timeout", self.hold_timeout) == 0:
            raise ValueError("hold_timeout must be > 0 seconds (math.inf: no limit)")
        if self.aliases and self.model is None:
            raise ValueError("aliases are other names of the model: name that in model=")

    def __repr__(self) -> str:
        model = "" if self.model is None else f", model {self.model!r}"
        return f"<{type(self).__name__} {self.name!r} at {self.base_url}{model}>"

    # ---- asking ----

    def stream(
        self,
        messages: Messages,
        *,
        priority: int | None = None,
        max_wait: float | None = None,
        hold_timeout: float | None = None,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
        extra: Mapping[str, Any] = _NOTHING,
    ) -> ChatStream:
        """An answer that is read piece by piece: to be used once, in ``async with``. Nothing is done before.

        Args:
          messages: the text of a message, or a conversation as OpenAI's API has it.
          priority: the lower goes first; see :class:`trio_mlxgate.Priority`.
          max_wait: seconds that the request may stand in the queue; None: as :func:`trio_mlxgate.use_options` or the
            endpoint's settings say, else no limit.
          hold_timeout: seconds from the grant of the slot to the end; None: as ``use_options`` or the adapter says.
          model: for callers who name one; it must be the adapter's, or one of its ``aliases``.
          temperature: None: as the adapter says.
          max_tokens: None: as the adapter says.
          supersede: a key; the request takes the place of the waiter that has the same.
          outer_deadline: what is done about a deadline around the wait, ``"warn"``, ``"raise"`` or ``"allow"``; None:
            as ``use_options`` or the gate says.
          extra: further fields of the request. With ``logprobs`` or ``top_logprobs``, which servers only give in plain
            answers, the answer comes in one piece, and keeps its slot until it is there even if its reader leaves.

        Raises:
          TypeError, ValueError: at once, if an argument isn't as described.
          UnknownModel: at once, if ``model`` isn't the adapter's. The server isn't asked: it might drop its own for it.

        Entering and reading the stream raise:

        GateRefused: :class:`~trio_mlxgate.QueueFull`, :class:`~trio_mlxgate.WaitTooLong` or
        :class:`~trio_mlxgate.Superseded`; nothing was sent. BackendUnreachable: there is no connection, or it broke
        before an answer. BackendRefused: the server answered with an error. MalformedAnswer, TruncatedAnswer: what came
        is no answer, or not all of it. ConnectTooSlow, FirstTokenTooSlow, TokenGapTooLong, AnswerTooSlow: a limit
        ended; if several did at once, that of the whole goes first. trio.ClosedResourceError: the adapter was closed,
        before or meanwhile. RuntimeError: this is no trio run.
        """
        return self._ask(
            messages,
            RequestOptions(
                priority=priority,
                max_wait=max_wait,
                hold_timeout=hold_timeout,
                supersede=supersede,
                outer_deadline=outer_deadline,
            ),
            system_prompt=self.system_prompt,
            model=self._model_for(model),
            temperature=self.temperature if temperature is None else temperature,
            max_tokens=self.max_tokens if max_tokens is None else max_tokens,
            extra=extra,
        )

    def _ask(self, messages: Messages, options: RequestOptions, **fields: Any) -> ChatStream:
        body, streamed = chat_body(messages, **{"model": self.model, **fields})
        # A server notices that the reader of a stream has left; plain requests it works off to their end.
        options = attrs.evolve(options, abandoned="release" if streamed else "drain")
        headers = self.headers.copy()
        headers["content-type"] = "application/json"
        headers["accept"] = "text/event-stream, application/json" if streamed else "application/json"
        headers["accept-encoding"] = "identity"
        if not self._keeps_connections:
            headers["connection"] = "close"
        return ChatStream(
            ChatCall(
                backend=self.name,
                url=f"{self.base_url}/chat/completions",
                headers=headers,
                body=body,
                streamed=streamed,
                model=self.model,
                limits=self.limits,
                options=options,
                hold_timeout=self.hold_timeout,
                line=self._line,
                on_token=self._saw_token,
                hide=self._hide,
            )
        )

    async def chat(
        self,
        messages: Messages,
        *,
        priority: int | None = None,
        max_wait: float | None = None,
        hold_timeout: float | None = None,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        supersede: Hashable | None = None,
        outer_deadline: OuterDeadline | None = None,
        extra: Mapping[str, Any] = _NOTHING,
    ) -> Completion:
        """The whole answer. Always a checkpoint; if it is cancelled the connection is closed and the slot given back.

        Arguments and errors are those of :meth:`stream`.
        """
        current_run()
        await trio.lowlevel.checkpoint()
        stream = self.stream(
            messages,
            priority=priority,
            max_wait=max_wait,
            hold_timeout=hold_timeout,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            supersede=supersede,
            outer_deadline=outer_deadline,
            extra=extra,
        )
        return await _read_all(stream)

    async def measure_inference_latency(self) -> float:
        """Ask for one token, and return how many seconds it took from the grant of the slot. Always a checkpoint.

        In a background slot, and only if nobody is at the gate: it never queues, and shares the server with nobody of
        ours. It costs the server a real inference. :func:`trio_mlxgate.use_options` around it means nothing to it.

        Raises:
          trio.WouldBlock: somebody has a slot or waits for one, or there is none.
          BackendError: as for :meth:`stream`.
        """
        current_run()
        await trio.lowlevel.checkpoint()
        gate = self.endpoint_gate
        now = gate.statistics()
        if now.in_flight or now.tasks_waiting:
            raise trio.WouldBlock(f"the gate of {self.name!r} is busy, and so would measure itself")
        # What the task that happens to measure has around it is meant for its own requests.
        options = RequestOptions(priority=Priority.BACKGROUND, max_wait=0.0, hold_timeout=self.hold_timeout)
        with gate.slot_nowait(Priority.BACKGROUND):
            answer = await _read_all(self._ask("hi", options, system_prompt=None, max_tokens=1))
        return answer.seconds if answer.first_token is None else answer.first_token

    # ---- looking ----

    async def read(self) -> Reading:
        """Look at the server, without an inference and without a slot. Always a checkpoint; see :meth:`Prober.read`.

        Raises nothing for whatever the server does.

        Raises:
          trio.ClosedResourceError: the adapter was closed, before or meanwhile.
        """
        line = self._line()
        with line.use():
            return await line.prober.read()

    async def health_check(self) -> bool:
        """Whether the server says that it is well. Always a checkpoint. Raises nothing for whatever it does."""
        reading = await self.read()
        return reading.health is Health.UP

    async def status_check(self) -> Status | None:
        """How busy the server says that it is; None: it doesn't. Always a checkpoint.

        Raises nothing for whatever it does.
        """
        reading = await self.read()
        return reading.status

    @property
    def endpoint_gate(self) -> Gate:
        """The gate that its requests pass.

        Raises:
          RuntimeError: the adapter was given none, and this is not inside of a run.
          UnknownEndpoint: the gates that it was given refuse what they don't know.
        """
        if isinstance(self.gate, Gate):
            return self.gate
        gates = current_endpoint_gates() if self.gate is None else self.gate
        return gates.gate_for(self.base_url)

    @property
    def own_work(self) -> OwnWork:
        """What all who use its gate have under way there."""
        now = self.endpoint_gate.statistics()
        return OwnWork(in_flight=now.in_flight, waiting=now.tasks_waiting)

    @property
    def last_token_at(self) -> float:
        """When it last read a token, on the clock of this run: the best sign that the server is well. -inf: never."""
        line = self._current
        return line.last_token_at if line is not None and _in_run(line.run) else -math.inf

    @property
    def closed(self) -> bool:
        """Whether it was closed in this run, and so can't be used in it any more."""
        line = self._current
        return line is not None and _in_run(line.run) and line.closed

    # ---- the end ----

    async def __aenter__(self) -> Self:
        """Nothing but a checkpoint.

        Raises:
          RuntimeError: this is no trio run.
        """
        current_run()
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """As :meth:`aclose`. Always a checkpoint."""
        await self.aclose()  # noqa: ASYNC102 - what it waits for shields itself and has an end of its own

    async def aclose(self) -> None:
        """End all requests, and close all connections, those of open streams too. Always a checkpoint.

        Whoever waits in another task, for a slot or for the server, gets trio.ClosedResourceError at once, and so does
        whoever goes on with a stream. All slots are given back then, but for those of plain requests (``logprobs``), on
        which the server still works. In this run the adapter is not to be used again: make a new one.
        """
        await self._line(closed_too=True).aclose()

    # ---- inside ----

    def _model_for(self, wanted: str | None) -> str | None:
        if wanted is None or wanted == self.model or wanted in self.aliases:
            return self.model
        if self.model is None:
            known = (
                "it names no model to the server, so callers can't either: leave out model=, or give the adapter one"
            )
        else:
            known = f"it has {', '.join(map(repr, [self.model, *sorted(self.aliases)]))}"
        raise UnknownModel(f"{self.name}: there is no model {wanted!r} here; {known}", backend=self.name)

    @property
    def _keeps_connections(self) -> bool:
        return self.base_url.startswith("https:") if self.kind is None else self.kind.keeps_connections

    def _line(self, *, closed_too: bool = False) -> Line:
        run = current_run()
        line = self._current
        if line is None or line.run is not run:
            line = self._current = self._new_line(run)
        if line.closed and not closed_too:
            raise line.refusal()
        return line

    def _new_line(self, run: trio.lowlevel.TrioToken) -> Line:
        wire = WireTransport(self.transport or self._sockets(), connect=self.limits.connect)
        gates = current_endpoint_gates() if self.gate is None else self.gate
        prober = Prober(self.base_url, headers=self.headers, kind=self.kind, transport=self.transport)
        return Line(self.name, run, GateTransport(gates, wire), prober)

    def _sockets(self) -> httpx.AsyncHTTPTransport:
        # No bound of its own: the gate's is the bound, and a request that has its slot waits for nothing more.
        kept = None if self._keeps_connections else 0
        # Without TLS there is nothing to verify, and the certificates take a while to read.
        return httpx.AsyncHTTPTransport(
            verify=self.base_url.startswith("https:"),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=kept),
        )

    def _saw_token(self, now: float) -> None:
        self._line(closed_too=True).last_token_at = now

    def _hide(self, text: str) -> str:
        """The text without what stands in the headers: servers quote it."""
        for value in self.headers.values():
            for secret in (value, value.rpartition(" ")[2]):
                if len(secret) >= _SHORTEST_SECRET:
                    text = text.replace(secret, "***")
        return text


async def _read_all(stream: ChatStream) -> Completion:
    """Read a stream to its end, for the whole. Always a checkpoint."""
    async with stream:
        async for _ in stream:
            pass
    return stream.completion


def _in_run(run: trio.lowlevel.TrioToken) -> bool:
    return trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is run

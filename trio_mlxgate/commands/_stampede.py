"""What the herd command does: a number of requests at once, straight at a server and through a gate, and the count."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

import attrs
import httpx
import trio

from trio_mlxgate.gate import Gate
from trio_mlxgate.httpx import GateTransport
from trio_mlxgate.instrumentation import Details, Granted
from trio_mlxgate.priority import Priority

CONNECT_TIMEOUT: Final = 5.0
"""Seconds in which the first connection must come about."""

TIMES_ALONE: Final = 5.0
"""The default time limit of a request, as a multiple of what one request takes alone."""

SHORTEST_TIMEOUT: Final = 0.5

PATIENCE: Final = 10.0
"""Seconds after which a request that is alone and has no limit is worth a word, and again after as many."""

Half = Literal["direct", "gated"]
Outcome = Literal["answered", "timed_out", "failed"]


class HerdError(Exception):
    """The herd cannot be sent as asked; the message is one line that says what to do."""


@attrs.frozen(kw_only=True)
class HerdSettings:
    """What herd to send, and where to."""

    base_url: str
    """As openai's SDK takes it, with ``/v1``."""

    model: str | None
    """The model that requests name; None leaves it out."""

    requests: int
    foreground: int
    """How many of the requests are a person's."""

    timeout: float | None
    """Seconds that a request may take as a whole; None: :data:`TIMES_ALONE` times what one takes alone."""

    capacity: int
    """How many slots the gate has."""

    max_tokens: int
    api_key: str | None = attrs.field(default=None, repr=False)


@attrs.define(kw_only=True)
class Request:
    """One request and what became of it."""

    number: int
    priority: Priority
    outcome: Outcome | None = None
    waited: float = 0.0
    """Seconds in the gate's queue."""

    served: float = 0.0
    """Seconds from sending to the end."""

    error: str = ""

    @property
    def foreground(self) -> bool:
        """Whether a person waits for it."""
        return self.priority is Priority.FOREGROUND


@attrs.define(kw_only=True)
class HalfResult:
    """One half of the herd, while it runs and after."""

    half: Half
    requests: list[Request]
    seconds: float = 0.0
    """How long the half took."""

    order_kept: bool = True
    """No background request was granted a slot while a foreground one waited."""

    def count(self, outcome: Outcome | None, foreground: bool | None = None) -> int:
        """How many requests, of one class or of all, have come to that."""
        return len(self.of(outcome, foreground))

    def of(self, outcome: Outcome | None, foreground: bool | None = None) -> list[Request]:
        """The requests, of one class or of all, that have come to that."""
        return [r for r in self.requests if r.outcome == outcome and foreground in (None, r.foreground)]

    @property
    def lost(self) -> int:
        """How many were not answered."""
        return self.count("timed_out") + self.count("failed")

    @property
    def first_error(self) -> str:
        """What the first failed request said; empty if none failed."""
        return next((r.error for r in self.requests if r.error), "")


@attrs.frozen(kw_only=True)
class HerdResult:
    """Both halves."""

    timeout: float
    alone: float
    """Seconds that one request took alone."""

    direct: HalfResult
    gated: HalfResult

    def as_json(self) -> dict[str, object]:
        """What ``--json`` prints."""
        return {
            "direct": _counts(self.direct),
            "gated": {
                **_counts(self.gated),
                "order_kept": self.gated.order_kept,
                "foreground": _class_counts(self.gated, foreground=True),
                "background": _class_counts(self.gated, foreground=False),
            },
        }


def _counts(half: HalfResult) -> dict[str, object]:
    return {
        "answered": half.count("answered"),
        "timed_out": half.count("timed_out"),
        "failed": half.count("failed"),
        "seconds": round(half.seconds, 3),
    }


def _class_counts(half: HalfResult, *, foreground: bool) -> dict[str, object]:
    answered = half.of("answered", foreground)
    waits = [request.waited for request in answered]
    return {
        "answered": len(answered),
        "wait_p50": None if not waits else round(median(waits), 3),
        "wait_max": None if not waits else round(max(waits), 3),
    }


def median(values: list[float]) -> float:
    """The middle value, the lower one of two."""
    return sorted(values)[(len(values) - 1) // 2]


Report: TypeAlias = Callable[[str, HalfResult | None], None]
"""Told what is being done now, and the half that runs, whose requests change as they end."""


async def send_herd(settings: HerdSettings, report: Report) -> HerdResult:
    """Send the herd twice, first straight, then through a gate of its own. Always a checkpoint.

    Raises:
      HerdError: the server can't be reached, or refuses even a single request.
    """
    try:
        client = _client(settings, httpx.AsyncHTTPTransport(limits=_NO_LIMITS))
    except (httpx.InvalidURL, ValueError) as error:
        raise HerdError(f"{settings.base_url!r} is no URL ({error}); give --url the base URL with /v1") from None
    async with client:
        report("warming up: one request alone", None)
        # The first may load the model; the second tells what one takes.
        patience = math.inf if settings.timeout is None else max(CONNECT_TIMEOUT, settings.timeout)
        await _ask_alone(client, settings, report, patience)
        alone = await _ask_alone(client, settings, report)
        limit = max(SHORTEST_TIMEOUT, TIMES_ALONE * alone) if settings.timeout is None else settings.timeout
        direct = _half("direct", settings)
        await _send_direct(client, settings, direct, limit, report)
        if direct.count("timed_out"):
            report("letting the server finish what was given up", direct)
            await _ask_alone(client, settings, report, why_slow="it still works on what was given up")
    gated = _half("gated", settings)
    await _send_gated(settings, gated, limit, report)
    return HerdResult(timeout=limit, alone=alone, direct=direct, gated=gated)


# No limit but our own: what is measured is the server and the gate, not the client's pool.
_NO_LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=0)


def _client(settings: HerdSettings, transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    headers = {} if settings.api_key is None else {"Authorization": f"Bearer {settings.api_key}"}
    return httpx.AsyncClient(base_url=settings.base_url, headers=headers, timeout=None, transport=transport)


def _half(half: Half, settings: HerdSettings) -> HalfResult:
    # The person's requests are spread among the others, so that the order of arrival doesn't help them.
    share = settings.foreground / settings.requests
    requests = [
        Request(
            number=number,
            priority=Priority.FOREGROUND
            if math.floor((number + 1) * share + 1e-9) > math.floor(number * share + 1e-9)
            else Priority.BACKGROUND,
        )
        for number in range(settings.requests)
    ]
    return HalfResult(half=half, requests=requests)


def _body(settings: HerdSettings, what: str) -> dict[str, object]:
    body: dict[str, object] = {
        "messages": [{"role": "user", "content": f"In a few words, what is a gate good for? ({what})"}],
        "max_tokens": settings.max_tokens,
        "stream": False,
    }
    if settings.model is not None:
        body["model"] = settings.model
    return body


async def _ask_alone(
    client: httpx.AsyncClient,
    settings: HerdSettings,
    report: Report,
    limit: float = math.inf,
    why_slow: str = "a model may be loading",
) -> float:
    """One request alone; the seconds that it took. Says so when it takes long."""
    start = trio.current_time()
    url = f"{settings.base_url.rstrip('/')}/chat/completions"
    seconds = math.nan

    async def wait_loudly() -> None:
        while True:
            await trio.sleep(PATIENCE)
            waited = trio.current_time() - start
            report(f"no answer from {url} after {waited:.0f} s ({why_slow}; Ctrl-C stops)", None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_loudly)
        problem = None
        with trio.move_on_after(limit) as scope:
            problem = await _try_alone(client, settings, url)
        if scope.cancelled_caught:
            problem = (
                f"{url} took the request and gave no answer within {limit:g} s; is it an LLM server? A model that "
                "loads slowly needs a larger --timeout"
            )
        seconds = trio.current_time() - start
        nursery.cancel_scope.cancel()
    # Raised out here, where no nursery wraps it.
    if problem:
        raise HerdError(problem)
    return seconds


async def _try_alone(client: httpx.AsyncClient, settings: HerdSettings, url: str) -> str:
    """Send one request without a limit; what is wrong, empty if nothing is."""
    try:
        response = await client.post(
            "chat/completions",
            json=_body(settings, "alone"),
            extensions={"timeout": {"connect": CONNECT_TIMEOUT}},
        )
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        text = "is no http URL; give --url the base URL, such as http://127.0.0.1:8080/v1"
        return f"{settings.base_url!r} {text}"  # noqa: ASYNC910 - here and below: sending is a checkpoint
    except httpx.ConnectTimeout:
        text = f"(no connection within {CONNECT_TIMEOUT:g} s); are host and port right?"
        return f"cannot reach {url} {text}"  # noqa: ASYNC910
    except httpx.ConnectError as error:
        reason = str(error) or "the connection broke while it was set up"
        hint = "is it http, and not https?" if url.startswith("https:") else "is the server running?"
        return f"cannot reach {url} ({reason}); {hint} Are host and port right?"  # noqa: ASYNC910
    except httpx.RequestError as error:
        return f"{url} broke off ({_say(error)}); look at the server's log"  # noqa: ASYNC910
    problem = _problem(response)
    return f"{url} {problem}" if problem else ""


def _problem(response: httpx.Response) -> str:
    """What is wrong with an answer, and what to do; empty if nothing is."""
    if response.status_code != 200:
        said = _message_of(response)
        if response.status_code == 404:
            advice = "give --url the base URL with /v1, and name the model with --model"
        elif response.status_code in (400, 422):
            advice = "name the model with --model"
        elif response.status_code in (401, 403):
            advice = "set MLXGATE_API_KEY"
        else:
            advice = "look at the server's log"
        return f"answered HTTP {response.status_code}{': ' + said if said else ''}; {advice}"
    try:
        choices: Any = response.json()["choices"]
        choices[0]["message"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return "answered something that is no chat completion; give --url the base URL with /v1"
    return ""


def _message_of(response: httpx.Response) -> str:
    """What the body of an error says, in a few words: OpenAI's message, a plain text; nothing of a page of HTML."""
    try:
        body: Any = response.json()
    except (ValueError, RecursionError):
        body = "" if "html" in response.headers.get("content-type", "") or "<" in response.text else response.text
    if isinstance(body, dict):
        body = body.get("error", body)
    if isinstance(body, dict):
        body = body.get("message", body)
    # Whatever it is, it must not steer the terminal.
    text = "".join(character for character in " ".join(str(body).split()) if character.isprintable())
    return text if len(text) <= 200 else text[:199] + "…"


def _say(error: Exception) -> str:
    return str(error) or type(error).__name__


async def _send_direct(
    client: httpx.AsyncClient, settings: HerdSettings, half: HalfResult, limit: float, report: Report
) -> None:
    async def send(request: Request) -> None:
        start = trio.current_time()
        with trio.move_on_after(limit) as scope:
            await _post(client, settings, half, request, {})
        request.served = trio.current_time() - start
        if scope.cancelled_caught:
            request.outcome = "timed_out"
        report("straight at the server", half)

    await _send_all(half, send)


async def _send_gated(settings: HerdSettings, half: HalfResult, limit: float, report: Report) -> None:
    class OrderHook:
        """Looks, at each grant, who waits."""

        def interest(self, *kinds: type[Details]) -> Callable[[], bool]:
            return lambda: Granted in kinds

        def __call__(self, details: Details) -> None:
            waiting = gate.statistics().waiting_by_priority
            if isinstance(details, Granted) and any(priority < details.priority for priority in waiting):
                half.order_kept = False

    gate = Gate(settings.capacity, name="herd", hooks=[OrderHook()])
    transport = GateTransport(gate, httpx.AsyncHTTPTransport(limits=_NO_LIMITS))

    async def send(request: Request) -> None:  # noqa: ASYNC910 - sending is a checkpoint, also where it fails
        extensions = {"mlxgate": {"priority": request.priority, "hold_timeout": limit}}
        arrived = trio.current_time()
        try:
            await _post(client, settings, half, request, extensions)
        except trio.TooSlowError:
            request.outcome = "timed_out"
        request.served = trio.current_time() - arrived - request.waited
        report("through the gate", half)

    async with _client(settings, transport) as client:
        await _send_all(half, send)


async def _send_all(half: HalfResult, send: Callable[[Request], Any]) -> None:
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for request in half.requests:
            nursery.start_soon(send, request)
    half.seconds = trio.current_time() - start


async def _post(
    client: httpx.AsyncClient,
    settings: HerdSettings,
    half: HalfResult,
    request: Request,
    extensions: dict[str, Any],
) -> None:
    body = _body(settings, f"{half.half} {request.number}")
    try:
        response = await client.post("chat/completions", json=body, extensions=extensions)
    except trio.TooSlowError:
        raise
    except httpx.RequestError as error:
        request.outcome = "failed"
        request.error = _say(error)
        return  # noqa: ASYNC910 - sending is a checkpoint, also where it fails
    request.waited = response.extensions.get("mlxgate", {}).get("waited", 0.0)
    request.error = _problem(response)
    request.outcome = "failed" if request.error else "answered"

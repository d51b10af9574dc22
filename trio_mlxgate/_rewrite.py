"""The usual rewrite of a request for a fallback: another server's address, key and model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from trio_mlxgate.core.endpoints import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

LOCAL_BASE_PATH: Final = "/v1"
"""What a request's path begins with, and the new base takes the place of."""

# A list of what goes along, and not of what is kept back: nobody knows under which names keys travel.
_GO_ALONG: Final = frozenset({b"accept", b"accept-encoding", b"content-encoding", b"content-type", b"user-agent"})
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e\t]*")
# The extensions that name the server which was meant at first.
_LOCAL_EXTENSIONS: Final = frozenset({"sni_hostname", "target"})


def rewrite_to(
    base_url: str,
    *,
    api_key: str | None = None,
    model: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Callable[[Any], Any]:
    """A rewrite for :class:`Fallback` that sends a request to another server that speaks OpenAI's API.

    ``base_url`` takes the place of all before the path, and of ``/v1`` where the path begins so; the rest of the path
    stays. Of the headers only ``Accept``, ``Accept-Encoding``, ``Content-Encoding``, ``Content-Type`` and
    ``User-Agent`` go along, and nothing of the query: what else is there may be a key or a cookie for the local server.
    The body goes along as it is, unless there is a ``model`` to put into it: then it is read and written anew, as JSON.

    Args:
      base_url: as OpenAI's clients take it, with ``/v1`` if the server has that: ``"https://api.example.com/v1"``.
        A query in it goes along with each request.
      api_key: sent as ``Authorization: Bearer``; None: no such header.
      model: what the ``model`` of a JSON body becomes; None: the body stays as it is.
      headers: headers that are sent beside these, or in their place.

    Raises:
      TypeError, ValueError: an argument isn't as described. The rewrite itself raises ValueError if there is a
        ``model`` to put into a body that is no JSON object.
    """
    base = _check_base_url(base_url)
    more: dict[str, str] = {}
    for name, value in (("api_key", api_key), ("model", model)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} must be a str or None, not {type(value).__name__}")
        if value is not None and not value.strip():
            raise ValueError(f"{name} is empty; is the variable set that it comes from?")
    if api_key is not None:
        if not _TOKEN.fullmatch(api_key):
            # Not repeated in the message, which may be logged.
            raise ValueError(
                "api_key has white space or characters in it that no header can have; is it read with strip()?"
            )
        more["Authorization"] = f"Bearer {api_key}"
    more.update(_check_headers(headers))
    base_path = base.path.rstrip("/")

    def rewrite(request: Any) -> Any:
        path = request.url.raw_path.partition(b"?")[0].decode("ascii")
        if path == LOCAL_BASE_PATH or path.startswith(LOCAL_BASE_PATH + "/"):
            path = path.removeprefix(LOCAL_BASE_PATH)
        query = f"?{base.query}" if base.query else ""
        sent = [(name, value) for name, value in request.headers.raw if name.lower() in _GO_ALONG]
        content = request.content
        rewritten = type(request)(
            request.method,
            f"{base.scheme}://{base.netloc}{base_path}{path}{query}",
            headers=sent,
            content=content if model is None or not content else _with_model(content, model),
            extensions={name: value for name, value in request.extensions.items() if name not in _LOCAL_EXTENSIONS},
        )
        rewritten.headers.update(more)
        return rewritten

    return rewrite


def _check_base_url(base_url: object) -> Any:
    if not isinstance(base_url, str):
        raise TypeError(f"base_url must be a str such as 'https://api.example.com/v1', not {type(base_url).__name__}")
    base = urlsplit(base_url)
    if base.username is not None or base.password is not None:
        # Not repeated in the message, which may be logged.
        raise ValueError("base_url has a user name or password in it; give api_key= or headers= instead")
    if base.scheme not in {"http", "https"} or not base.hostname:
        raise ValueError(f"base_url must be one such as 'https://api.example.com/v1', not {base_url!r}")
    Endpoint.from_url(base_url)  # says what is wrong with host and port
    return base


def _check_headers(headers: object) -> dict[str, str]:
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers must be a mapping of names to values, both str, not {type(headers).__name__}")
    for name, value in headers.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"headers must be a mapping of names to values, both str; see {name!r}")
        if not (_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)):
            # Not its value, which may be a key.
            raise ValueError(f"the header {name!r} has a name or a value with characters that no header can have")
    return dict(headers)


def _with_model(content: bytes, model: str) -> bytes:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ValueError(
            f"the request's body is no JSON object, so its model can't become {model!r}: "
            "give rewrite_to no model=, or write a rewrite of your own for such requests"
        )
    return json.dumps({**body, "model": model}).encode()

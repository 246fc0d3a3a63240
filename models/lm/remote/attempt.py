"""One attempt at a call: the request, the stream of its answer, and what can go wrong with either, by what is to be done about it."""

import asyncio
import datetime
import email.utils
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 529})  # statuses of a trouble that may pass


class Passing(Exception):
    """A trouble that may pass: the attempt can be made again."""

    def __init__(self, why: str, *, wait: float = 0.0, started: bool = True):
        super().__init__(why)
        self.wait = wait  # seconds, as the server asked for
        self.started = started  # whether the server may have begun to work, so that the attempt may have cost something


def client_of(url: str, key: str | None, connections: int, seconds: float) -> "httpx.AsyncClient":
    """Connections to a server.

    Raises:
      ImportError: without the extra `remote`.
    """
    httpx = library()
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    timeout = httpx.Timeout(seconds, connect=min(10.0, seconds))
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=url + "/", headers=headers, timeout=timeout, limits=limits)


def library() -> Any:
    """The module httpx, imported when it is first needed: models in this process do without."""
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise ImportError('load: models behind a server need httpx: pip install "posterity[remote]"') from error
    return httpx


async def listed(client: "httpx.AsyncClient", seconds: float) -> list[str]:
    """The models that a server says it serves.

    Raises:
      ConnectionError: when none answers, or it is in trouble.
      PermissionError: for a wrong key.
      LookupError: when it has no such list.
      ValueError: when it is no OpenAI-compatible server.
    """
    try:
        response = await client.get("models", timeout=seconds)
        if response.status_code != 200:
            refuse(response)
        return [str(row["id"]) for row in response.json()["data"]]
    except library().TransportError as error:
        raise ConnectionError(f"no server answers ({str(error) or type(error).__name__}); is it running, and is the address right?") from error
    except Passing as error:
        raise ConnectionError(f"the server is in trouble: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"what answers is no OpenAI-compatible server ({error})") from error


async def events(client: "httpx.AsyncClient", path: str, body: Mapping[str, Any], seconds: float) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a streamed answer, until the server says that it is whole. All of it may take `seconds`.

    Raises:
      Passing: for a trouble that may pass: no connection, a time-out, a status of `AGAIN`, an answer that breaks off or is no JSON.
      PermissionError: for a wrong key.
      LookupError: for a path or a model that the server does not have.
      ValueError: for a request that it refuses.
    """
    started, httpx = False, library()
    try:
        async with asyncio.timeout(seconds), client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                refuse(response)
            started = True
            if "event-stream" not in response.headers.get("content-type", ""):
                await response.aread()
                yield response.json()
                return
            async for data in _data(response):
                if data == b"[DONE]":
                    return
                if data:
                    event = json.loads(data)
                    if error := event.get("error"):
                        raise Passing(f"the server broke off: {message_of(error)}")
                    yield event
        raise Passing("the answer broke off before its end")
    except TimeoutError as error:
        raise Passing(f"no whole answer within {seconds:g} seconds") from error
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise Passing(f"no connection: {str(error) or type(error).__name__}", started=False) from error
    except httpx.TransportError as error:
        raise Passing(f"the connection broke: {str(error) or type(error).__name__}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise Passing(f"the answer is no JSON{'' if started else ' (before it began)'}: {error}") from error


async def spelled(client: "httpx.AsyncClient", root: str, ids: Sequence[int]) -> str | None:
    """What tokens spell, as llama.cpp's server says it; None where another is asked."""
    try:
        response = await client.post(f"{root}/detokenize", json={"tokens": list(ids)})
        return str(response.json()["content"]) if response.status_code == 200 else None
    except (library().TransportError, ValueError, KeyError, TypeError):
        return None


async def _data(response: "httpx.Response") -> AsyncIterator[bytes]:
    """What the lines of an event stream hold. Lines end with newlines alone: httpx's own would also end within a text, at U+2028 and the like."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def refuse(response: "httpx.Response") -> None:
    """Raises what a status other than 200 means."""
    status, why = response.status_code, message_of(_json(response))
    said = f"{status} {response.reason_phrase}".strip() + (f": {why}" if why else "")
    if status in AGAIN:
        raise Passing(said, wait=retry_after(response.headers.get("retry-after")), started=status in (408, 500, 502, 504))
    if status in (401, 403):
        raise PermissionError(f"the server refuses the key ({said}); give the right one as key=")
    if status in (404, 405):
        raise LookupError(said)
    raise ValueError(f"the server refuses the request ({said})")


def message_of(error: Any) -> str:
    """What an error of a server says, in whichever of the usual forms."""
    if isinstance(error, Mapping):
        return message_of(error.get("error") or error.get("message") or error.get("detail") or "")
    return " ".join(str(error).split())[:500]


def retry_after(header: str | None) -> float:
    """The seconds that a Retry-After header asks to wait: it holds them, or a date."""
    if header is None:
        return 0.0
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
    return max((when - datetime.datetime.now(datetime.UTC)).total_seconds(), 0.0)


def _json(response: "httpx.Response") -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text

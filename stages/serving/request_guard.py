"""The layer in front of MLflow's scoring server: bounds a request's size and memory.

It answers invalid requests with status 4xx. Alone, MLflow answers with status 500 where its own
parsing fails (no Content-Type, JSON nested too deeply, an integer of 5,000 digits), puts the whole
request into its messages, and opens CSV and Parquet, whose size in memory no limit of bytes bounds.
"""

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 48 * 2**20  # bytes of a request: more than one image of 32 MiB in base64
# In a request's JSON; each takes up to some 100 bytes of memory. 20 arrays of 224 x 224 pixels.
MAX_VALUES = 2**22
BODY_SECONDS = 60.0  # for the body to arrive
MAX_REASON = 500  # characters
INPUT_KEYS = {"dataframe_split", "dataframe_records", "inputs", "instances"}  # of MLflow's protocol

logger = logging.getLogger(__name__)


class RefusedRequestError(Exception):
    """The request is invalid: status 4xx and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason[:MAX_REASON]


class RequestGuard:
    """ASGI middleware; only requests to /invocations are touched."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            # MLflow parses and predicts in the threads of the event loop. With one thread, parsed
            # JSON, many times the size of its text, is in memory for one request at a time, also
            # when MLflow has given up waiting for it.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", "/invocations"):
            await self.app(scope, receive, send)
            return
        try:
            response = await self._invoke(scope, receive)
        except ClientDisconnect:
            return
        except RefusedRequestError as refused:
            # In the form of MLflow's errors. JSON in ASCII, as json.dumps writes it: the reason may
            # quote half a surrogate pair of the request, which UTF-8 cannot encode.
            error = {"error_code": "INVALID_PARAMETER_VALUE", "message": refused.reason}
            content = json.dumps(error)
            response = Response(content, refused.status, media_type="application/json")
        await response(scope, receive, send)

    async def _invoke(self, scope: Scope, receive: Receive) -> Response:
        """MLflow's response.

        Raises:
            RefusedRequestError: for every response with status 4xx, and where MLflow failed.
        """
        request = Request(scope, receive)
        body = await read_body(request)
        check_content_type(request.headers.get("content-type", ""))
        await asyncio.to_thread(check_json, body)  # in the one thread, see above
        messages: list[Message] = [{"type": "http.request", "body": body}]
        del body  # not to be held twice while the request waits
        sent: list[Message] = []

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        async def hold(message: Message) -> None:
            sent.append(message)

        try:
            await self.app(scope, replay, hold)
        except Exception:
            # The served model responds to its own bugs with status 500 (ServedModel.predict). What
            # is raised here, MLflow raised about the request: nearly every kind of exception.
            logger.warning("MLflow failed on a request", exc_info=True)
            raise RefusedRequestError(
                400, "expected a request as MLflow documents it, got one that it fails on"
            ) from None
        status = sent[0]["status"]
        content = b"".join(message.get("body", b"") for message in sent[1:])
        if 400 <= status < 500:
            # MLflow puts the request in front of the reason.
            reason = json.loads(content)["message"].rpartition("\nError: ")[2]
            raise RefusedRequestError(status, reason)
        return Response(content, status, media_type="application/json")


def check_content_type(value: str) -> None:
    """Raises RefusedRequestError unless it is JSON in UTF-8."""
    kind, _, parameter = value.lower().replace(" ", "").replace('"', "").partition(";")
    if kind != "application/json" or parameter not in ("", "charset=utf-8"):
        raise RefusedRequestError(415, f"Content-Type: expected application/json, got {value!r}")


async def read_body(request: Request) -> bytes:
    """The whole body.

    Raises:
        RefusedRequestError: when it is too large or slow. Its bytes are counted, as Content-Length
            may be wrong or missing.
        ClientDisconnect: when the client has gone.
    """
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= MAX_BODY:
                    body += chunk
                else:  # still read to its end: most clients look for no response before that
                    body.clear()
    except TimeoutError:
        raise RefusedRequestError(
            408, f"expected the whole request within {BODY_SECONDS:g} s, got {size} bytes"
        ) from None
    if size > MAX_BODY:
        raise RefusedRequestError(
            413, f"expected a request of at most {MAX_BODY // 2**20} MiB, got {size} bytes"
        )
    return bytes(body)


def check_json(body: bytes) -> None:
    """Raises RefusedRequestError unless it is an object that MLflow's protocol allows."""
    # Before each value but the first stands one of these characters.
    if sum(map(body.count, b",[{")) > MAX_VALUES:
        raise RefusedRequestError(
            413,
            f"expected JSON of at most {MAX_VALUES} values, got more; images in base64 are shorter",
        )
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:  # ValueError: also no UTF-8, or too many digits
        raise RefusedRequestError(
            400, f"expected JSON, got {type(error).__name__}: {error}"
        ) from None
    expected = f"expected a JSON object with one of the keys {', '.join(sorted(INPUT_KEYS))}"
    if not isinstance(content, dict):
        raise RefusedRequestError(400, f"{expected}, got {type(content).__name__}")
    # Other keys could make MLflow take it for a request to a language model, which it checks less.
    if len(content.keys() & INPUT_KEYS) != 1 or content.keys() - INPUT_KEYS - {"params"}:
        raise RefusedRequestError(400, f"{expected}, got {list(content)[:5]}")

"""The layer in front of MLflow's server, around an application that the test controls."""

import asyncio
import json

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from stages.serving import request_guard
from stages.serving.request_guard import RequestGuard
from tests.helpers.serving_requests import JSON, post_asgi

BODY = b'{"inputs": 1}'


async def echo(scope, receive, send):
    await PlainTextResponse(await Request(scope, receive).body())(scope, receive, send)


def responding(status, content):
    """An application with this response to everything."""
    return Response(content, status)


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON", 'application/json; charset="UTF-8"']
)
def test_valid_request_passes_unchanged(kind):
    chunks = [BODY[:4], b"", BODY[4:]]
    assert post_asgi(RequestGuard(echo), chunks, {"content-type": kind}) == (200, BODY)


@pytest.mark.parametrize(
    "headers", [{}, {"content-type": ""}, {"content-type": "application/json; charset=latin-1"}]
)
def test_other_content_type_is_refused(headers):
    status, content = post_asgi(RequestGuard(echo), [BODY], headers)
    assert (status, b"expected application/json" in content) == (415, True)


@pytest.mark.parametrize("length", [None, "3", "1000000"])
def test_bytes_are_counted_whatever_content_length_says(length, monkeypatch):
    monkeypatch.setattr(request_guard, "MAX_BODY", 100)
    headers = JSON if length is None else {**JSON, "content-length": length}
    app = RequestGuard(echo)
    assert post_asgi(app, [BODY.ljust(100)], headers)[0] == 200
    assert post_asgi(app, [BODY.ljust(60), b" " * 41], headers)[0] == 413


def test_slow_body_is_refused(monkeypatch):
    monkeypatch.setattr(request_guard, "BODY_SECONDS", 0.01)
    assert post_asgi(RequestGuard(echo), [BODY, None])[0] == 408


def test_client_that_disconnects_gets_no_response():
    async def receive():
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/invocations",
        "headers": [(b"content-type", b"application/json")],
    }
    asyncio.run(RequestGuard(echo)(scope, receive, send=None))


def test_number_of_values_is_limited(monkeypatch):
    monkeypatch.setattr(request_guard, "MAX_VALUES", 6)
    assert post_asgi(RequestGuard(echo), [b'{"inputs": [1, [2], {}]}'])[0] == 200
    assert post_asgi(RequestGuard(echo), [b'{"inputs": [1, [2], {}, 3]}'])[0] == 413


INVALID_BODIES = {
    "empty": b"",
    "nested deeply": b"[" * 10**5,
    "many digits": b'{"inputs": ' + b"9" * 5000 + b"}",
    "no UTF-8": b'{"inputs": "\xff"}',
    "list": b"[]",
    "two keys": b'{"inputs": 1, "instances": 1}',
    "request to a language model": b'{"inputs": 1, "prompt": 1}',
    "long key": b'{"' + b"k" * 10**5 + b'": 1}',
}


@pytest.mark.parametrize("case", INVALID_BODIES)
def test_invalid_body_is_refused_with_short_reason(case):
    status, content = post_asgi(RequestGuard(echo), [INVALID_BODIES[case]])
    assert status == 400
    assert json.loads(content)["message"].startswith("expected ")
    assert len(content) < 1000


def test_refusal_of_mlflow_is_cut_to_its_reason():
    long = {
        "error_code": "BAD_REQUEST",
        "message": f"Failed to predict data '{'x' * 10**5}'. \nError: image 0: why",
        "stack_trace": "",
    }
    status, content = post_asgi(RequestGuard(responding(400, json.dumps(long))), [BODY])
    assert (status, json.loads(content)["message"]) == (400, "image 0: why")


def test_failure_of_mlflow_on_a_request_is_status_400():
    async def fails(scope, receive, send):
        await PlainTextResponse("Internal Server Error", 500)(scope, receive, send)
        raise TypeError("unhashable type: 'list'")

    assert post_asgi(RequestGuard(fails), [BODY])[0] == 400


@pytest.mark.parametrize("status", [200, 500, 504])
def test_other_responses_pass_unchanged(status):
    assert post_asgi(RequestGuard(responding(status, "text")), [BODY]) == (status, b"text")


def test_other_paths_pass_unchanged():
    assert post_asgi(RequestGuard(echo), [b"text"], {}, "/ping") == (200, b"text")

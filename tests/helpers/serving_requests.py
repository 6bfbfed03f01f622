"""Requests to a model, valid and invalid, and a client of a server in this process."""

import asyncio
import base64

import numpy as np
from PIL import Image

from tests.helpers.evaluated_models import SIZE
from tests.helpers.image_files import encode, make_png

JSON = {"content-type": "application/json"}


def image_file(seed: int = 0) -> bytes:
    """A JPEG file of 90 x 70 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels).resize((90, 70)), quality=75)


def to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


INVALID_REQUESTS = {  # image -> part of the error message
    "no base64": ("%%%", "expected base64"),
    "HTML": (to_base64(b"<html>"), "not an image"),
    "empty": ("", "empty"),
    "truncated": (to_base64(image_file()[:-200]), "truncated"),
    "decompression bomb": (
        to_base64(make_png(20000, 20000, bytes(10**6))),
        "too large: more than 80000000 pixels",
    ),
    "34 MB": (to_base64(bytes(34 * 10**6)), "at most 32 MiB"),
    "wrong shape": (np.zeros((SIZE, SIZE), int).tolist(), f"shape ({SIZE}, {SIZE}, 3)"),
    "ragged list": ([[1, 2], [3]], "inhomogeneous"),
    "out of range": (np.full((SIZE, SIZE, 3), 256).tolist(), "0..255"),
    "fractions": (np.full((SIZE, SIZE, 3), 0.5).tolist(), "whole numbers"),
    "number": (7, "shape"),
    "null": (None, "shape"),
}


def post_asgi(app, chunks, headers=JSON, path="/invocations"):
    """Status and body of an ASGI application's response to a POST request.

    Its body comes in chunks; None: no further chunk comes.
    """
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "root_path": ""}
    scope["headers"] = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    rest, sent = list(chunks), []

    async def receive():
        if rest and (chunk := rest.pop(0)) is not None:
            return {"type": "http.request", "body": chunk, "more_body": bool(rest)}
        return await asyncio.sleep(3600)

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

"""An HTTP handler in Python, as it is written for any host."""

import json
from urllib.parse import urlsplit

from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports.types import (
    Fields,
    IncomingBody,
    IncomingRequest,
    OutgoingBody,
    OutgoingResponse,
    ResponseOutparam,
)

requests = 0


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        global requests
        requests += 1
        path = urlsplit(request.path_with_query() or "/").path
        match path.rsplit("/", 1)[-1]:
            case "echo":
                answer = read(request)
            case "print":
                print("a line from Python")
                answer = b"printed\n"
            case "spin":
                while True:
                    pass
            case "throw":
                raise RuntimeError("this handler always throws")
            case "count":
                answer = str(requests).encode()
            case _:
                user = [value.decode() for value in request.headers().get("x-user")]
                said = {"hello": "Python", "path": path, "user": next(iter(user), None)}
                answer = json.dumps(said).encode()
        respond(response_out, answer)


def read(request: IncomingRequest) -> bytes:
    body = request.consume()
    stream = body.stream()
    pieces = []
    while True:
        try:
            pieces.append(stream.blocking_read(1 << 16))
        except Exception:  # the stream's end is one too
            break
    stream.__exit__(None, None, None)
    IncomingBody.finish(body)
    return b"".join(pieces)


def respond(response_out: ResponseOutparam, answer: bytes) -> None:
    response = OutgoingResponse(Fields())
    body = response.body()
    ResponseOutparam.set(response_out, Ok(response))
    stream = body.write()
    for at in range(0, len(answer), 4096):
        stream.blocking_write_and_flush(answer[at : at + 4096])
    stream.__exit__(None, None, None)
    OutgoingBody.finish(body, None)

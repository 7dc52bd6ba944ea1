"""What parent and child say to each other: a JSON header and raw buffers, bounded, never pickled.

A frame is `!II` header length and number of buffers, the header, one `!Q` length per buffer, the buffers. The child has
read untrusted models, so its side is untrusted too: every length is checked before anything is read for it. NaN and
infinity pass as Python's JSON writes them, since the loss of a diverging training is news that must get through.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from squeezeflow.core.errors import SqueezeflowError

HEADER_LIMIT = 16 << 20
BUFFERS_LIMIT = 512 << 20
BUFFER_COUNT_LIMIT = 1024

_PREFIX = struct.Struct("!II")
_CHUNK = 1 << 20
_JOIN_BELOW = 64 << 10
_YIELD_EVERY = 4 << 20

Buffer = bytes | bytearray | memoryview


class FrameError(Exception):
    """What arrived is no frame, or one beyond the bounds; the connection cannot be used any more."""


@dataclass(frozen=True)
class Frame:
    """One message: a JSON object and the raw buffers that belong to it."""

    header: dict[str, Any]
    buffers: tuple[bytes, ...] = ()

    @property
    def kind(self) -> str:
        """What the frame says it is; empty when it does not say."""
        kind = self.header.get("kind")
        return kind if isinstance(kind, str) else ""


def encode(header: Mapping[str, Any], buffers: Sequence[Buffer] = ()) -> list[Buffer]:
    """Gives the pieces to send, in order.

    Raises:
        SqueezeflowError: INVALID_PARAMETER when the frame exceeds the bounds.
        TypeError, ValueError: the header is no JSON.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    views = [memoryview(buffer).cast("B") if memoryview(buffer).nbytes else memoryview(b"") for buffer in buffers]
    total = sum(view.nbytes for view in views)
    _refuse_beyond("JSON bytes", len(text), HEADER_LIMIT)
    _refuse_beyond("tensors", len(views), BUFFER_COUNT_LIMIT)
    _refuse_beyond("tensor bytes", total, BUFFERS_LIMIT)
    lengths = struct.pack(f"!{len(views)}Q", *(view.nbytes for view in views))
    head = b"".join((_PREFIX.pack(len(text), len(views)), text, lengths))
    if total <= _JOIN_BELOW:
        return [b"".join((head, *views))]
    return [head, *(view for view in views if view.nbytes)]


def _refuse_beyond(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise SqueezeflowError(
            "INVALID_PARAMETER",
            f"a message to or from a step's process has {size} {what}, at most {limit} may be; send a smaller batch",
            metadata={"size": size, "limit": limit},
        )


def _parse() -> Generator[int, bytes, Frame]:
    """Yields how many bytes it needs next, is sent them, returns the frame: one parser for both kinds of socket."""
    header_size, count = _PREFIX.unpack((yield _PREFIX.size))
    if header_size > HEADER_LIMIT or count > BUFFER_COUNT_LIMIT:
        raise FrameError(f"a frame announces {header_size} header bytes and {count} buffers")
    text = yield header_size
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame's header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise FrameError("a frame's header is no JSON object")
    lengths: tuple[int, ...] = struct.unpack(f"!{count}Q", (yield 8 * count))
    if sum(lengths) > BUFFERS_LIMIT:
        raise FrameError(f"a frame announces {sum(lengths)} buffer bytes")
    buffers = []
    for length in lengths:
        buffers.append((yield length))
    return Frame(header, tuple(buffers))


def send(sock: socket.socket, header: Mapping[str, Any], buffers: Sequence[Buffer] = ()) -> None:
    """Sends one frame over a blocking socket; raises what `encode` raises, or OSError."""
    for piece in encode(header, buffers):
        sock.sendall(piece)


def receive(sock: socket.socket) -> Frame:
    """Reads one frame from a blocking socket; EOFError when the other side has gone."""
    parser = _parse()
    needed = next(parser)
    while True:
        pieces: list[bytes] = []
        while needed:
            pieces.append(_some(sock.recv(min(needed, _CHUNK))))
            needed -= len(pieces[-1])
        try:
            needed = parser.send(b"".join(pieces))
        except StopIteration as done:
            frame: Frame = done.value
            return frame


async def send_pieces(sock: socket.socket, pieces: Sequence[Buffer]) -> None:
    """Sends what `encode` gave over a non-blocking socket."""
    loop = asyncio.get_running_loop()
    for piece in pieces:
        await loop.sock_sendall(sock, piece)


async def receive_async(sock: socket.socket) -> Frame:
    """Reads one frame from a non-blocking socket; EOFError when the other side has gone."""
    loop = asyncio.get_running_loop()
    parser = _parse()
    needed = next(parser)
    unbroken = 0
    while True:
        pieces: list[bytes] = []
        while needed:
            pieces.append(_some(await loop.sock_recv(sock, min(needed, _CHUNK))))
            needed -= len(pieces[-1])
            unbroken += len(pieces[-1])
            if unbroken > _YIELD_EVERY:  # sock_recv does not give way while bytes are there: others must run too
                unbroken = 0
                await asyncio.sleep(0)
        try:
            needed = parser.send(b"".join(pieces))
        except StopIteration as done:
            frame: Frame = done.value
            return frame


def _some(data: bytes) -> bytes:
    if not data:
        raise EOFError("the other side of the socket has gone")
    return data

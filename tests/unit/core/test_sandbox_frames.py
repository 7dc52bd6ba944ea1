"""Frames over a real pair of connected sockets' bytes: what goes in comes out, and what is no frame is refused."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import frames

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def feed(pair: Pair, data: bytes) -> frames.Frame:
    pair[0].sendall(data)
    pair[0].close()
    return frames.receive(pair[1])


def raw(
    header: bytes, *, announced: int | None = None, lengths: tuple[int, ...] = (), count: int | None = None
) -> bytes:
    prefix = struct.pack(
        "!II", len(header) if announced is None else announced, len(lengths) if count is None else count
    )
    return prefix + header + struct.pack(f"!{len(lengths)}Q", *lengths)


def test_a_frame_arrives_as_it_was_sent(pair: Pair) -> None:
    frames.send(pair[0], {"kind": "call", "text": "Grüße", "n": [1, 2.5, None]}, [b"abc", b"", bytearray(b"de")])
    frame = frames.receive(pair[1])
    assert frame.header == {"kind": "call", "text": "Grüße", "n": [1, 2.5, None]}
    assert frame.buffers == (b"abc", b"", b"de")
    assert frame.kind == "call"


def test_frames_do_not_run_into_each_other(pair: Pair) -> None:
    for number in range(3):
        frames.send(pair[0], {"number": number}, [bytes([number]) * number])
    assert [frames.receive(pair[1]).header["number"] for _ in range(3)] == [0, 1, 2]


def test_a_buffer_of_a_wider_type_travels_as_its_bytes(pair: Pair) -> None:
    frames.send(pair[0], {}, [memoryview(struct.pack("2i", 7, 8)).cast("i")])
    assert frames.receive(pair[1]).buffers == (struct.pack("2i", 7, 8),)


def test_the_loss_of_a_diverging_training_gets_through(pair: Pair) -> None:
    frames.send(pair[0], {"loss": math.nan, "best": math.inf})
    header = frames.receive(pair[1]).header
    assert math.isnan(header["loss"])
    assert header["best"] == math.inf


def test_buffers_larger_than_the_socket_arrive_on_the_event_loop(pair: Pair) -> None:
    data = bytes(range(256)) * (40 << 10)
    sender = threading.Thread(target=frames.send, args=(pair[0], {"kind": "reply"}, [data, b"end"]))
    sender.start()
    pair[1].setblocking(False)
    frame = asyncio.run(frames.receive_async(pair[1]))
    sender.join()
    assert frame.buffers == (data, b"end")


def test_the_event_loop_sends_what_a_blocking_reader_gets(pair: Pair) -> None:
    data = b"x" * (3 << 20)
    received: list[frames.Frame] = []
    reader = threading.Thread(target=lambda: received.append(frames.receive(pair[1])))
    reader.start()
    pair[0].setblocking(False)
    asyncio.run(frames.send_pieces(pair[0], frames.encode({"kind": "call"}, [data])))
    reader.join()
    assert received == [frames.Frame({"kind": "call"}, (data,))]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(raw(b"{}", announced=frames.HEADER_LIMIT + 1), id="header beyond the limit"),
        pytest.param(raw(b"{}", count=frames.BUFFER_COUNT_LIMIT + 1), id="too many buffers"),
        pytest.param(raw(b"{}", lengths=(frames.BUFFERS_LIMIT, 1)), id="buffers beyond the limit together"),
        pytest.param(raw(b"{'kind'}"), id="no JSON"),
        pytest.param(raw(b"[1]"), id="no object"),
        pytest.param(raw(b"\xff\xfe"), id="no UTF-8"),
        pytest.param(raw(b"[" * 100_000), id="JSON nested without end"),
        pytest.param(raw(b'{"n": ' + b"9" * 10_000 + b"}"), id="a number without end"),
    ],
)
def test_what_is_no_frame_is_refused_before_more_is_read(pair: Pair, data: bytes) -> None:
    with pytest.raises(frames.FrameError):
        feed(pair, data)


@pytest.mark.parametrize("kept", [0, 3, 9, 15])
def test_a_frame_that_breaks_off_is_an_end_of_file(pair: Pair, kept: int) -> None:
    whole = raw(json.dumps({"kind": "x"}).encode(), lengths=(4,)) + b"abcd"
    with pytest.raises(EOFError):
        feed(pair, whole[:kept])


def test_a_header_beyond_the_limit_is_refused_at_the_sender() -> None:
    with pytest.raises(SqueezeflowError, match="smaller batch") as caught:
        frames.encode({"text": "x" * frames.HEADER_LIMIT})
    assert caught.value.reason == "INVALID_PARAMETER"
    assert caught.value.metadata["limit"] == str(frames.HEADER_LIMIT)


def test_too_many_buffers_are_refused_at_the_sender() -> None:
    with pytest.raises(SqueezeflowError, match="1025 tensors"):
        frames.encode({}, [b""] * (frames.BUFFER_COUNT_LIMIT + 1))


def test_a_value_that_is_no_json_is_refused_at_the_sender() -> None:
    with pytest.raises(TypeError):
        frames.encode({"value": object()})


def test_a_header_that_tells_no_kind_has_none(pair: Pair) -> None:
    frames.send(pair[0], {"kind": 7})
    assert frames.receive(pair[1]).kind == ""

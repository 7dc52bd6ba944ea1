"""Channels with the options that every caller of ours needs."""

from __future__ import annotations

import grpc
import grpc.aio

# Messages stay small: bytes go through the store or are streamed in chunks of 1 MiB. What may be large are descriptions
# of large models and tensors sent to inference; the servers bound those.
MESSAGE_LIMIT = 64 << 20
METADATA_LIMIT = 64 << 10

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_metadata_size", METADATA_LIMIT),
    ("grpc.absolute_max_metadata_size", METADATA_LIMIT),
    ("grpc.lb_policy_name", "round_robin"),
    # Names are looked up again at once when a pod goes, not after 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Services are on this machine or in this cluster: a proxy of the environment is not meant for them.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(target: str) -> grpc.aio.Channel:
    """Opens an asyncio channel to HOST:PORT or a gRPC target such as `dns:///converter:7071`."""
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


def open_sync_channel(target: str) -> grpc.Channel:
    """Opens a blocking channel to HOST:PORT or a gRPC target."""
    return grpc.insecure_channel(target, options=_OPTIONS)

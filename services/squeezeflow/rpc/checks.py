"""What is wrong with a request before any servicer sees it: unknown fields and broken proto rules.

An older server must not ignore what a newer client asked for, so fields it does not know are refused, not skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import protovalidate
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from squeezeflow.core.errors import SqueezeflowError


@cache
def _validator() -> protovalidate.Validator:
    return protovalidate.Validator()


def check_message(message: Message) -> None:
    """Raises INVALID_PARAMETER that names every unknown field and every broken rule."""
    advice = "this server does not know the field: remove it, or use a newer server"
    unknown = [(path, advice) for path in _unknown(message)]
    broken = unknown or [(_path(violation), _text(violation)) for violation in _validator().collect_violations(message)]
    if broken:
        raise SqueezeflowError(
            "INVALID_PARAMETER", "; ".join(f"{path}: {text}" for path, text in broken[:8]), fields=broken
        )


def _unknown(message: Message, prefix: str = "") -> Iterator[str]:
    unknown: Any = UnknownFieldSet(message)
    for field in unknown:
        yield f"{prefix}#{field.field_number}"
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key, item in value.items():
                    yield from _unknown(item, f"{prefix}{field.name}[{key!r}].")
        elif field.is_repeated:
            for index, item in enumerate(value):
                yield from _unknown(item, f"{prefix}{field.name}[{index}].")
        else:
            yield from _unknown(value, f"{prefix}{field.name}.")


def _path(violation: protovalidate.Violation) -> str:
    path = ""
    field = violation.proto.field
    for element in field.elements if field else ():
        path += ("." if path else "") + element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path or "request"


def _text(violation: protovalidate.Violation) -> str:
    return violation.proto.message or violation.proto.rule_id

"""One encoding for whatever enters a digest: sorted keys, no spaces, defaults filled in, UTF-8.

Wire bytes are never hashed: equal messages can serialise differently.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


def canonical_json(value: Any) -> str:
    """Gives the one JSON text of a value; NaN and infinity raise ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    """Gives the SHA-256 of UTF-8 text as 64 lowercase hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def fill_defaults(message: M) -> M:
    """Gives a copy in which every unset scalar field that has a default in the proto is set to it.

    Submessages that are set are filled too; fields whose proto states no default stay unset, since unset means
    "to be inferred" there.
    """
    filled = type(message)()
    filled.CopyFrom(message)
    for field in filled.DESCRIPTOR.fields:
        if field.is_repeated:
            if field.message_type is not None and not field.message_type.GetOptions().map_entry:
                items = [fill_defaults(item) for item in getattr(filled, field.name)]
                del getattr(filled, field.name)[:]
                getattr(filled, field.name).extend(items)
        elif field.message_type is not None:
            if filled.HasField(field.name):
                getattr(filled, field.name).CopyFrom(fill_defaults(getattr(filled, field.name)))
        elif field.has_default_value and field.has_presence and not filled.HasField(field.name):
            setattr(filled, field.name, field.default_value)
    return filled


def message_json(message: Message) -> Any:
    """Gives a message as JSON values with proto field names, defaults filled in, ready for `canonical_json`."""
    return json_format.MessageToDict(fill_defaults(message), preserving_proto_field_name=True)

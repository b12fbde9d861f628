"""The two fields of a sentencepiece model file that the sentencepiece library does not tell, read without protobuf.

A model file is one `ModelProto` message. Its wire format is a list of fields: a key (field number and wire type),
then a varint, a fixed-size number or a length-prefixed byte string.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Field numbers of sentencepiece_model.proto.
_MODEL_TRAINER, _MODEL_NORMALIZER = 2, 3
_TRAINER_MODEL_TYPE = 3
_NORMALIZER_CHARSMAP = 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

UNIGRAM = 1


@dataclass(frozen=True)
class ModelHeader:
    """What surrounds the pieces of a model.

    Attributes:
        model_type: `UNIGRAM`, or the number of another type.
        precompiled_charsmap: the normaliser's character map; empty for none.
    """

    model_type: int
    precompiled_charsmap: bytes


def read_header(model: bytes) -> ModelHeader:
    """The header of a serialised ModelProto.

    Raises:
        ValueError: the bytes are no protobuf message.
    """
    model_type, charsmap = UNIGRAM, b""
    for number, value in _fields(model):
        if number == _MODEL_TRAINER and isinstance(value, bytes):
            found = dict(_fields(value)).get(_TRAINER_MODEL_TYPE)
            model_type = found if isinstance(found, int) else model_type
        elif number == _MODEL_NORMALIZER and isinstance(value, bytes):
            found = dict(_fields(value)).get(_NORMALIZER_CHARSMAP)
            charsmap = found if isinstance(found, bytes) else charsmap
    return ModelHeader(model_type, charsmap)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field: an int for a varint, the raw bytes for everything else."""
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        wire_type = key & 7
        if wire_type == _VARINT:
            value, position = _read_varint(message, position)
            yield key >> 3, value
            continue
        if wire_type == _BYTES:
            size, position = _read_varint(message, position)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"no sentencepiece model: wire type {wire_type} at byte {position}")
        if position + size > len(message):
            raise ValueError(f"no sentencepiece model: a field of {size} bytes at byte {position} runs past the end")
        yield key >> 3, message[position : position + size]
        position += size


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("no sentencepiece model: the file ends in the middle of a field")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"no sentencepiece model: a number of more than 10 bytes before byte {position}")

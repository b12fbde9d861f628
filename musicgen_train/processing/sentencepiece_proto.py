"""The few fields of a sentencepiece model file that the tokenizer needs, read and written without protobuf.

A model file is one `ModelProto` message. Its wire format is a list of fields: a key (field number and wire type),
then a varint, a fixed-size number or a length-prefixed byte string.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Field numbers of sentencepiece_model.proto.
_MODEL_PIECES, _MODEL_TRAINER, _MODEL_NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_MODEL_TYPE, _TRAINER_VOCAB_SIZE = 3, 4
_TRAINER_UNK_ID, _TRAINER_BOS_ID, _TRAINER_EOS_ID, _TRAINER_PAD_ID = 40, 41, 42, 43
_TRAINER_UNK_PIECE, _TRAINER_EOS_PIECE, _TRAINER_PAD_PIECE = 45, 47, 48
_NORMALIZER_NAME, _NORMALIZER_CHARSMAP = 1, 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

UNIGRAM = 1
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


@dataclass(frozen=True)
class ModelHeader:
    """What the sentencepiece library does not tell of a model.

    Attributes:
        model_type: `UNIGRAM`, or the number of another type.
        precompiled_charsmap: the normaliser's character map; empty for none.
        user_defined: the texts of the pieces that are user-defined symbols.
    """

    model_type: int
    precompiled_charsmap: bytes
    user_defined: frozenset[str]


def read_header(model: bytes) -> ModelHeader:
    """The header of a serialised ModelProto.

    Raises:
        ValueError: the bytes are no protobuf message.
    """
    model_type, charsmap, user_defined = UNIGRAM, b"", set()
    marker = _int_field(_PIECE_TYPE, USER_DEFINED)
    for number, value in _fields(model):
        if number == _MODEL_PIECES and isinstance(value, bytes):
            # Reading every piece's fields would take longer than all else; few have these two bytes.
            if marker in value:
                piece = dict(_fields(value))
                if piece.get(_PIECE_TYPE) == USER_DEFINED and isinstance(text := piece.get(_PIECE_TEXT), bytes):
                    user_defined.add(text.decode())
        elif number == _MODEL_TRAINER and isinstance(value, bytes):
            found = dict(_fields(value)).get(_TRAINER_MODEL_TYPE)
            model_type = found if isinstance(found, int) else model_type
        elif number == _MODEL_NORMALIZER and isinstance(value, bytes):
            found = dict(_fields(value)).get(_NORMALIZER_CHARSMAP)
            charsmap = found if isinstance(found, bytes) else charsmap
    return ModelHeader(model_type, charsmap, frozenset(user_defined))


def write_unigram_model(
    pieces: Sequence[tuple[str, float, int]],
    precompiled_charsmap: bytes,
    *,
    unk: tuple[int, str],
    eos: tuple[int, str],
    pad: tuple[int, str],
) -> bytes:
    """A serialised ModelProto of a Unigram model.

    Args:
        pieces: text, score and type (`NORMAL`, `CONTROL`, ...) of every piece, in the order of their ids. Scores are
            stored as 32-bit floats, so one that is not representable as such is rounded.
        precompiled_charsmap: the normaliser's character map; empty for none.
        unk, eos, pad: id and text of the special pieces; id -1 for one that the model does not have.
    """
    parts = []
    for text, score, kind in pieces:
        piece = _bytes_field(_PIECE_TEXT, text.encode()) + _key(_PIECE_SCORE, _FIXED32) + struct.pack("<f", score)
        # The type is left out where it is the default, as protobuf's own writer does.
        piece += b"" if kind == NORMAL else _int_field(_PIECE_TYPE, kind)
        parts.append(_bytes_field(_MODEL_PIECES, piece))
    trainer = (
        _int_field(_TRAINER_MODEL_TYPE, UNIGRAM)
        + _int_field(_TRAINER_VOCAB_SIZE, len(pieces))
        + _int_field(_TRAINER_UNK_ID, unk[0])
        + _int_field(_TRAINER_BOS_ID, -1)
        + _int_field(_TRAINER_EOS_ID, eos[0])
        + _int_field(_TRAINER_PAD_ID, pad[0])
        + _bytes_field(_TRAINER_UNK_PIECE, unk[1].encode())
        + _bytes_field(_TRAINER_EOS_PIECE, eos[1].encode())
        + _bytes_field(_TRAINER_PAD_PIECE, pad[1].encode())
    )
    parts.append(_bytes_field(_MODEL_TRAINER, trainer))
    # The name is informative only; the map decides.
    normalizer = _bytes_field(_NORMALIZER_NAME, b"nmt_nfkc" if precompiled_charsmap else b"identity")
    normalizer += _bytes_field(_NORMALIZER_CHARSMAP, precompiled_charsmap)
    parts.append(_bytes_field(_MODEL_NORMALIZER, normalizer))
    return b"".join(parts)


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


def _varint(value: int) -> bytes:
    # Negative numbers are written as their 64-bit two's complement.
    value &= 0xFFFFFFFFFFFFFFFF
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _int_field(number: int, value: int) -> bytes:
    return _key(number, _VARINT) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(value)) + value

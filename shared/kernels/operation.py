"""The structs that a program is made of, as the library takes them.

Knows the memory layout alone: the same structs stand in source/program.cpp and
source/attention.hpp, and loading the library compares their sizes.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum


class Kind(IntEnum):
    """What an operation does."""

    LINEAR = 1
    NORM = 2
    ANGLES = 3
    ROTATE = 4
    ATTENTION = 5
    PACK = 6
    UNPACK = 7
    ADD = 8


class DataType(IntEnum):
    """Element types of rows and weights."""

    FLOAT32 = 1
    BFLOAT16 = 2


class Activation(IntEnum):
    """What a linear layer does to its sums; SILU_GATE takes two halves: silu(gate) x up."""

    NONE = 0
    GELU = 1
    GELU_TANH = 2
    QUICK_GELU = 3
    SILU = 4
    SILU_GATE = 5
    RELU = 6


class AttentionPlan(ctypes.Structure):
    """`Attention` of source/attention.hpp."""

    _fields_ = [
        ("query", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("sequences", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("key_heads", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("query_stride", ctypes.c_int64),
        ("key_stride", ctypes.c_int64),
        ("output_stride", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("causal", ctypes.c_int64),
        ("scale", ctypes.c_float),
    ]


class Operation(ctypes.Structure):
    """`Operation` of source/program.cpp."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        ("data_type", ctypes.c_int32),
        ("rows", ctypes.c_void_p),
        ("input", ctypes.c_void_p),
        ("input_stride", ctypes.c_int64),
        ("output", ctypes.c_void_p),
        ("output_stride", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("depth", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("residual_stride", ctypes.c_int64),
        ("index", ctypes.c_void_p),
        ("activation", ctypes.c_int32),
        ("wide", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("heads", ctypes.c_int32),
        ("key_heads", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("position_stride", ctypes.c_int64),
        ("frequencies", ctypes.c_void_p),
        ("axes", ctypes.c_void_p),
        ("attention", ctypes.POINTER(AttentionPlan)),
        ("sequences", ctypes.c_void_p),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
    ]

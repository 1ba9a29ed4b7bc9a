"""The pickle inside a torch.save file, read as a description and never run.

A stack machine for the few opcodes that describe one tensor. It builds tuples,
numbers and texts; names of globals stay texts. The only calls that it
understands are the three that torch writes around a tensor, and it does not make
them: it notes their arguments.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shared.errors import BadEmbeddingsError

_MAX_OPCODE_COUNT = 256

_STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "DoubleStorage": "float64",
}
_REBUILD = ("torch._utils", "_rebuild_tensor_v2")
_ORDERED_DICT = ("collections", "OrderedDict")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor as its pickle describes it. Nothing of it is checked against the data.

    Attributes:
        data_type: name of the element type.
        storage_key: name of the member that holds the bytes.
        storage_length, storage_offset: in elements.
        shape, strides: in elements.
    """

    data_type: str
    storage_key: str
    storage_length: int
    storage_offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Global:
    module: str
    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    data_type: str
    key: str
    length: int


class _EmptyMapping:
    """The hooks of a tensor that has none."""


class _Mark:
    """Where a tuple starts on the stack."""


class _Unreadable(Exception):
    """The pickle is not the description of one dense tensor."""


def read_record(name: str, pickle: bytes) -> TensorRecord:
    """Reads the description.

    Raises:
        BadEmbeddingsError: any opcode, global or structure beyond those of one
            dense tensor.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
            if count >= _MAX_OPCODE_COUNT:
                raise _Unreadable("too long")
            machine.step(opcode.name, argument)
        result = machine.result()
    except _Unreadable as reason:
        raise BadEmbeddingsError(f"{name}: not one dense tensor saved by torch.save ({reason})") from None
    except (ValueError, IndexError, KeyError, TypeError, UnicodeDecodeError):
        raise BadEmbeddingsError(f"{name}: broken pickle in the torch file") from None
    return result


class _Machine:
    """The stack, the memo, and one small method for each group of opcodes."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> TensorRecord:
        """The one thing left on the stack."""
        if len(self._stack) != 1 or not isinstance(self._stack[0], TensorRecord):
            raise _Unreadable("it holds something else")
        return self._stack[0]

    def step(self, opcode: str, argument: Any) -> None:
        """Follows one opcode."""
        if opcode in _IGNORED:
            return
        if opcode in _PUSHED:
            self._stack.append(argument)
        elif opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in _PUTS:
            self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]
        elif opcode in _GETS:
            self._stack.append(self._memo[argument])
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        else:
            raise _Unreadable(f"opcode {opcode}")

    def _mark(self, _: Any) -> None:
        self._stack.append(_Mark)

    def _tuple_to_mark(self, _: Any) -> None:
        start = len(self._stack) - 1 - self._stack[::-1].index(_Mark)
        self._stack[start:] = [tuple(self._stack[start + 1 :])]

    def _short_tuple(self, length: int) -> None:
        parts = self._stack[-length:]
        if len(parts) != length:
            raise _Unreadable("stack underflow")
        self._stack[-length:] = [tuple(parts)]

    def _global(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_accepted_global(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_accepted_global(module, name))

    def _persistent(self, _: Any) -> None:
        self._stack.append(_storage(self._stack.pop()))

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if function == _Global(*_ORDERED_DICT) and arguments == ():
            self._stack.append(_EmptyMapping())
        elif function == _Global(*_REBUILD):
            self._stack.append(_tensor_record(arguments))
        else:
            raise _Unreadable("a call")


_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
_PUSHED = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "UNICODE"})
_CONSTANTS: dict[str, Any] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
}
_PUTS = frozenset({"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"})
_GETS = frozenset({"BINGET", "LONG_BINGET", "GET"})
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple_to_mark,
    "TUPLE1": lambda machine, _: machine._short_tuple(1),
    "TUPLE2": lambda machine, _: machine._short_tuple(2),
    "TUPLE3": lambda machine, _: machine._short_tuple(3),
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "BINPERSID": _Machine._persistent,
    "REDUCE": _Machine._reduce,
}


def _accepted_global(module: Any, name: Any) -> _Global:
    storage = module == "torch" and name in _STORAGES
    if not storage and (module, name) not in (_REBUILD, _ORDERED_DICT):
        # The name is the sender's text: it is not repeated.
        raise _Unreadable("it refers to something else than a dense tensor of an accepted type")
    return _Global(module, name)


def _storage(identity: Any) -> _Storage:
    """Reads ("storage", type, key, location, element count)."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise _Unreadable("a persistent id")
    _, kind, key, _, length = identity
    if not isinstance(kind, _Global) or kind.module != "torch":
        raise _Unreadable("a storage")
    if not isinstance(key, str) or not _is_count(length):
        raise _Unreadable("a storage")
    return _Storage(_STORAGES[kind.name], key, length)


def _tensor_record(arguments: Any) -> TensorRecord:
    """Reads (storage, offset, shape, strides, requires_grad, hooks)."""
    if not isinstance(arguments, tuple) or len(arguments) != 6:
        raise _Unreadable("a tensor with metadata")
    storage, offset, shape, strides, requires_grad, hooks = arguments
    plain = isinstance(requires_grad, bool) and isinstance(hooks, _EmptyMapping)
    if not isinstance(storage, _Storage) or not plain or not _is_count(offset):
        raise _Unreadable("a tensor")
    if not (_are_counts(shape) and _are_counts(strides)):
        raise _Unreadable("a shape")
    return TensorRecord(storage.data_type, storage.key, storage.length, offset, shape, strides)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_counts(value: Any) -> bool:
    return isinstance(value, tuple) and all(_is_count(part) for part in value)

"""Read a torch checkpoint as data: what it would build, without importing, calling or making any of it.

`torch.load(weights_only=True)` stops at the first class it does not know. Here the instructions of the file are
followed one by one (`pickletools` takes them apart), but a class or function stays a name (`Named`), an object stays a
note of what it would be made of (`Inert`), and a tensor stays the place of its numbers (`LazyTensor`). Both layouts of
torch.save are read: the zip file, and the sequence of pickles of torch before 1.6. Needs no torch.
"""

from __future__ import annotations

import math
import pickletools
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

from caeav.manifests.core.archive import open_archive
from caeav.manifests.core.errors import CaeavError

MAX_PICKLE = 1 << 28
"""Most bytes of instructions, without tensors; the largest published checkpoints have a few megabytes."""
MAX_GROWTH = 4
"""How many times its own size a file may unpack to; torch.save compresses nothing."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PLAIN = (str, bytes, int, float, bool, type(None))
DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
"""A storage's class -> the dtype of its values."""
WIDTHS = {
    **dict.fromkeys(("float64", "int64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool"), 1),
    "complex128": 16,
}
"""Bytes of one value of a dtype."""


class WeightsError(CaeavError):
    """Weights that are missing, damaged, or not those of the model."""


@dataclass(frozen=True)
class Named:
    """A class or function that a file names."""

    name: str


@dataclass(eq=False)
class Inert:
    """An object that a call of `name` would have made, but did not; `state` and `entries` are what it would hold."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """A sequence of numbers in the file."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A view of a storage that is not read yet; offset and stride count values."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return math.prod(self.shape) * WIDTHS[self.dtype]


@dataclass
class Pickled:
    """What a file holds: `root`, and every class and function it names; `read` returns the bytes of a storage."""

    root: Any
    names: frozenset[str]
    read: Callable[[Storage], bytes]


@contextmanager
def open_pickled(path: Path) -> Iterator[Pickled]:
    """The content of a checkpoint, without its tensors; raises `WeightsError` for a file that is none, or damaged."""
    with _as_weights_error(path), path.open("rb") as file:
        if _is_zip(file):
            with open_archive(file, _most(path)) as archive:
                yield _read_zip(archive)
        else:
            yield _read_legacy(file)


def check_size(path: Path) -> None:
    """Raise `WeightsError` for an archive that unpacks to far more than its own size; other files pass."""
    with _as_weights_error(path), path.open("rb") as file:
        if _is_zip(file):
            with open_archive(file, _most(path)):
                pass


def _most(path: Path) -> int:
    """How many bytes an archive may unpack to."""
    return MAX_GROWTH * path.stat().st_size + (1 << 16)


def _is_zip(file: BinaryIO) -> bool:
    """Tell the two layouts apart as torch does; leaves the file at its beginning."""
    begin = file.read(4)
    file.seek(0)
    return begin == b"PK\x03\x04"


class _UnreadableError(Exception):
    """What is wrong with a file, and what to do; the path is added by `_as_weights_error`."""


@contextmanager
def _as_weights_error(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into a `WeightsError`."""
    try:
        yield
    except _UnreadableError as error:
        problem, hint = error.args
        raise WeightsError(f"{path} cannot be read as plain weights: {problem}", hint=hint) from error
    except RecursionError as error:
        raise WeightsError(f"{path} is nested without end", hint="it is no checkpoint") from error
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        NotImplementedError,  # an encrypted or oddly packed member
        RuntimeError,
        OverflowError,
        MemoryError,
        struct.error,
        BadZipFile,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as plain weights: {readable(reason)}",
            hint="it is no checkpoint of torch, or damaged: get the file again",
        ) from error


def readable(text: str) -> str:
    """Text from a file with its control characters escaped, so that it cannot steer a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _read_zip(archive: ZipFile) -> Pickled:
    names = archive.namelist()
    main = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(main) != 1:
        raise _UnreadableError("an archive without one data.pkl", "give a file that torch.save wrote")
    folder = main[0].removesuffix("data.pkl")
    if any(name.startswith((f"{folder}code/", f"{folder}constants.pkl")) for name in names):
        raise _UnreadableError(
            "a program (TorchScript), not a checkpoint",
            "get the state dict of the model, best as .safetensors",
        )
    order = f"{folder}byteorder"
    if order in names and archive.read(order) != b"little":
        raise _UnreadableError("written on a big-endian machine", "save it again on another")
    if archive.getinfo(main[0]).file_size > MAX_PICKLE:
        raise _UnreadableError(
            f"more than {MAX_PICKLE} bytes beside its tensors", "save the state dict alone"
        )
    machine = _Machine()
    with archive.open(main[0]) as instructions:
        root = machine.run(instructions)
    return Pickled(
        root, frozenset(machine.names), lambda storage: archive.read(f"{folder}data/{storage.key}")
    )


def _read_legacy(file: BinaryIO) -> Pickled:
    """The layout before torch 1.6: four pickles, a list of storages, then the storages one after the other."""
    machine = _Machine()
    magic = machine.run(file, longest=64)
    if magic != _LEGACY_MAGIC:
        raise _UnreadableError("a pickle, but not of torch.save", "give a file that torch.save wrote")
    for _ in range(2):  # version and machine
        machine.run(file, longest=4096)
    root = machine.run(file)
    keys = machine.run(file)
    places: dict[str, tuple[int, int]] = {}
    kinds = machine.storages
    size = file.seek(0, 1)
    end = file.seek(0, 2)
    for key in keys if isinstance(keys, list) else ():
        file.seek(size)
        (count,) = struct.unpack("<q", file.read(8))
        length = count * WIDTHS[kinds[str(key)].dtype]
        if count < 0 or size + 8 + length > end:
            raise _UnreadableError("ends within its tensors", "get the file again")
        places[str(key)] = (size + 8, length)
        size += 8 + length

    def read(storage: Storage) -> bytes:
        begin, length = places[storage.key]
        file.seek(begin)
        return file.read(length)

    return Pickled(root, frozenset(machine.names), read)


class _Machine:
    """Follows a pickle's instructions with inert values, and collects the `names` and `storages` it meets."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: Any, longest: int = MAX_PICKLE) -> Any:
        """The value of the next pickle in `file`, of at most `longest` bytes."""
        self._stack, self._marks, self._memo = [], [], {}
        begin = file.tell()
        for code, arg, place in pickletools.genops(file):
            if place - begin > longest:
                raise _UnreadableError("a pickle without end", "it is no checkpoint")
            if code.name == "STOP":
                return self._stack.pop()
            step = _STEPS.get(code.name)
            if step is None:
                raise _UnreadableError(
                    f"the instruction {code.name} is not read", "save it again by torch.save"
                )
            step(self, arg)
        raise EOFError("ends too early")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        begin = self._marks.pop()
        found = self._stack[begin:]
        del self._stack[begin:]
        return found

    def last(self, count: int) -> tuple[Any, ...]:
        found = tuple(self._stack[len(self._stack) - count :])
        if len(found) != count:
            raise _UnreadableError("a pickle that takes what is not there", "get the file again")
        del self._stack[len(self._stack) - count :]
        return found

    def name(self, arg: str) -> Named:
        module, _, name = arg.partition(" ")
        if (module, name) in NAME_MAPPING:  # as Python 2 called them, which torch.save writes
            module, name = NAME_MAPPING[module, name]
        whole = f"{IMPORT_MAPPING.get(module, module)}.{name}"
        self.names.add(whole)
        return Named(whole)

    def remember(self, arg: int | None) -> None:
        self._memo[len(self._memo) if arg is None else arg] = self._stack[-1]

    def recall(self, arg: int) -> None:
        self.push(self._memo[arg])

    def extend(self, values: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(values)

    def put(self, values: list[Any] | tuple[Any, ...]) -> None:
        held = self._stack[-1]
        into = held.entries if isinstance(held, Inert) else held
        if isinstance(into, dict):
            into.update({_key(values[i]): values[i + 1] for i in range(0, len(values) - 1, 2)})

    def dictionary(self, _: Any) -> None:
        items = self.since_mark()
        self.push({})
        self.put(items)

    def instance(self, _: Any) -> None:
        kind, *args = self.since_mark()
        self.call(kind, tuple(args))

    def build(self, _: Any) -> None:
        (state,) = self.last(1)
        if isinstance(self._stack[-1], Inert):
            self._stack[-1].state = state

    def call(self, function: Any, args: Any) -> None:
        self.push(_make(function, args if isinstance(args, tuple) else ()))

    def persistent(self, key: Any) -> None:
        """A storage: `("storage", class, key, device, count)`; before 1.6 also a view of one, which is not followed."""
        kind, what, name, count = (key[0], key[1], str(key[2]), key[4]) if len(key) in (5, 6) else ("",) * 4
        dtype = DTYPES.get(what.name.rpartition(".")[2]) if isinstance(what, Named) else None
        if kind != "storage" or dtype is None or (len(key) == 6 and key[5] is not None):
            self.push(Inert("a storage of another kind"))
            if kind == "storage" and dtype is not None:
                self.storages[name] = Storage(name, dtype, int(count))
            return
        self.push(self.storages.setdefault(name, Storage(name, dtype, int(count))))


def _key(value: Any) -> Any:
    """A key of a dictionary; anything but a plain value is wrapped, so that it is hashed by identity."""
    return value if isinstance(value, (*_PLAIN, Named, Inert)) else Inert(type(value).__name__, (value,))


def _make(function: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(function, Named):
        return Inert("a call of what is no name", args)
    maker = _MAKERS.get(function.name)
    made = maker(args) if maker else None
    return Inert(function.name, args) if made is None else made


def _make_tensor(args: tuple[Any, ...], dtype: str = "") -> LazyTensor | None:
    storage, offset, shape, stride = args[:4]
    if not isinstance(storage, Storage):
        return None
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
        return None
    return LazyTensor(storage, dtype or storage.dtype, offset, tuple(shape), tuple(stride))


def _make_typed_tensor(args: tuple[Any, ...]) -> LazyTensor | None:
    """The third form: untyped bytes, and their dtype."""
    dtype = args[6].name.rpartition(".")[2] if isinstance(args[6], Named) else ""
    return _make_tensor(args, dtype) if dtype in WIDTHS else None


def _make_subclass(args: tuple[Any, ...]) -> Any:
    """From `(function, class, arguments, state)`, the tensor without its class."""
    made = _make(args[0], args[2] if isinstance(args[2], tuple) else ())
    return made if isinstance(made, LazyTensor) else None


def _make_parameter(args: tuple[Any, ...]) -> Any:
    """The tensor that a parameter wraps."""
    return args[0] if args and isinstance(args[0], LazyTensor) else None


def _make_dict(args: tuple[Any, ...]) -> dict[Any, Any]:
    given = args[0] if args else {}
    if isinstance(given, dict):
        return dict(given)
    pairs = given if isinstance(given, list | tuple) else ()
    return {_key(pair[0]): pair[1] for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2}


def _make_list(args: tuple[Any, ...]) -> list[Any]:
    return list(args[0]) if args and isinstance(args[0], list | tuple) else []


_MAKERS: Mapping[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor": _make_tensor,
    "torch._utils._rebuild_tensor_v2": _make_tensor,
    "torch._utils._rebuild_tensor_v3": _make_typed_tensor,
    "torch._utils._rebuild_parameter": _make_parameter,
    "torch._utils._rebuild_parameter_with_state": _make_parameter,
    "torch.nn.parameter.Parameter": _make_parameter,
    "torch._tensor._rebuild_from_type_v2": _make_subclass,
    "torch.Size": lambda args: tuple(_make_list(args)),
    **dict.fromkeys(("collections.OrderedDict", "collections.Counter", "builtins.dict"), _make_dict),
    "collections.defaultdict": lambda args: {},
    **dict.fromkeys(("builtins.list", "builtins.set", "builtins.frozenset"), _make_list),
    "builtins.tuple": lambda args: tuple(_make_list(args)),
}
"""The few things that are made: tensors still unread, and plain containers."""

_Step = Callable[[_Machine, Any], Any]
_VALUES = (
    "INT|BININT|BININT1|BININT2|LONG|LONG1|LONG4|FLOAT|BINFLOAT|STRING|BINSTRING|SHORT_BINSTRING|UNICODE|BINUNICODE"
    "|SHORT_BINUNICODE|BINUNICODE8|BINBYTES|SHORT_BINBYTES|BINBYTES8|BYTEARRAY8"
)
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(_VALUES.split("|"), lambda m, arg: m.push(arg)),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, arg: None),
    "NONE": lambda m, arg: m.push(None),
    "NEWTRUE": lambda m, arg: m.push(True),
    "NEWFALSE": lambda m, arg: m.push(False),
    "MARK": _Machine.mark,
    "POP": lambda m, arg: m.last(1),
    "POP_MARK": lambda m, arg: m.since_mark(),
    "DUP": lambda m, arg: m.push(m._stack[-1]),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda m, arg: m.push([])),
    "EMPTY_DICT": lambda m, arg: m.push({}),
    "EMPTY_TUPLE": lambda m, arg: m.push(()),
    "LIST": lambda m, arg: m.push(m.since_mark()),
    "DICT": _Machine.dictionary,
    **dict.fromkeys(("TUPLE", "FROZENSET"), lambda m, arg: m.push(tuple(m.since_mark()))),
    "TUPLE1": lambda m, arg: m.push(m.last(1)),
    "TUPLE2": lambda m, arg: m.push(m.last(2)),
    "TUPLE3": lambda m, arg: m.push(m.last(3)),
    "APPEND": lambda m, arg: m.extend(list(m.last(1))),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, arg: m.extend(m.since_mark())),
    "SETITEM": lambda m, arg: m.put(m.last(2)),
    "SETITEMS": lambda m, arg: m.put(m.since_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": lambda m, arg: m.push(m.name(arg)),
    "STACK_GLOBAL": lambda m, arg: m.push(m.name(" ".join(map(str, m.last(2))))),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, arg: m.call(*m.last(2))),
    "NEWOBJ_EX": lambda m, arg: m.call(*m.last(3)[:2]),
    "OBJ": _Machine.instance,
    "INST": lambda m, arg: m.call(m.name(arg), tuple(m.since_mark())),
    "BUILD": _Machine.build,
    "BINPERSID": lambda m, arg: m.persistent(m.last(1)[0]),
}
"""Instruction -> what it does; any other is refused."""

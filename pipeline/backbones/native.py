"""Import torchvision and torchaudio beside any torch, if need be without their compiled parts.

Wheels built for another torch (most often CUDA wheels beside a CPU torch) fail on import, and timm, open_clip and
transformers' image processors fail with them. `import_torchvision` and `import_torchaudio` are plain imports where
those work. Elsewhere they put in place what the import needs, and every compiled operator raises an error that names
it when it is called. Call them before importing a library that imports torchvision or torchaudio.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast

from caeav.manifests.core.errors import CaeavError

# torchvision registers shape functions for these on import, so they must exist with their true schema.
_VISION_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_OPERATORS = {
    "torchvision": (
        *("roi_align", "qroi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"),
        *("_roi_align_backward", "_roi_pool_backward", "_ps_roi_align_backward", "_ps_roi_pool_backward"),
        *("_deform_conv2d_backward", "box_iou_rotated"),
    ),
    "torchaudio": ("rnnt_loss_forward", "forced_align", "_lfilter_core_loop", "_overdrive_core_loop"),
}
_FAILURES = (ImportError, OSError, RuntimeError)
_libraries: list[Any] = []  # torch forgets operators whose library object is collected


class MissingNativeError(CaeavError, RuntimeError):
    """A compiled operator was called that the installed build does not provide."""


def import_torchvision() -> Any:
    """The module `torchvision`, without its compiled operators where they do not fit the installed torch.

    Raises `CaeavError` when it is not installed or fails for another reason.
    """
    return _imported("torchvision", _prepare_torchvision, _finish_torchvision)


def import_torchaudio() -> Any:
    """The module `torchaudio`, in the same way."""
    return _imported("torchaudio", _prepare_torchaudio, _finish_torchaudio)


def import_learned(name: str, user: str) -> Any:
    """The module `name` of the extra `learned`; raises `CaeavError`, saying that `user` needs it, without it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CaeavError(f"{user} needs {error.name}", hint="pip install 'caeav[learned]'") from error


def _imported(name: str, prepare: Callable[[str], None], finish: Callable[[str], None]) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise CaeavError(f"{name} is not installed", hint="pip install 'caeav[vision]'") from error
        why = str(error)
    except _FAILURES as error:
        why = str(error).strip().splitlines()[0]
    _forget(name)
    try:
        prepare(why)
        module = importlib.import_module(name)
    except _FAILURES as error:
        _forget(name)
        raise CaeavError(f"{name} does not load: {why}; without its compiled part: {error}") from error
    finish(why)
    return module


def _forget(name: str) -> None:
    """Remove what a failed import left behind, so that the import can be tried again."""
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[module]


def _refusing(operator: str, why: str) -> Callable[..., NoReturn]:
    """A stand-in for an operator `<package>::<name>`, which raises `MissingNativeError` when it is called."""
    package = operator.partition("::")[0]

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise MissingNativeError(
            f"{operator} is not available: the compiled part of {package} does not fit the installed torch ({why})",
            hint=f"install the {package} build made for this torch",
        )

    return refuse


def _refuse_operators(namespace: str, why: str) -> None:
    import torch

    operators = getattr(torch.ops, namespace)
    for name in _OPERATORS[namespace]:
        setattr(operators, name, _refusing(f"{namespace}::{name}", why))


def _prepare_torchvision(why: str) -> None:
    import torch

    library: Any = cast(Any, torch.library.Library)("torchvision", "FRAGMENT")
    for name, schema in _VISION_SCHEMAS.items():
        library.define(f"{name}{schema}")
        library.impl(name, _refusing(f"torchvision::{name}", why), "CompositeExplicitAutograd")
    _libraries.append(library)


def _finish_torchvision(why: str) -> None:
    """Let calls reach the operators that name themselves, past a check that only says "custom C++ ops"."""
    _refuse_operators("torchvision", why)
    for name, module in list(sys.modules.items()):
        if name.startswith("torchvision.") and hasattr(module, "_assert_has_ops"):
            vars(module)["_assert_has_ops"] = lambda: None


def _prepare_torchaudio(why: str) -> None:
    """A stand-in for `torchaudio._extension`, which loads the compiled part; its submodules stay the real ones."""
    spec = importlib.machinery.PathFinder.find_spec("torchaudio")
    if spec is None or spec.origin is None:
        raise ImportError("torchaudio has no file")
    stand_in = types.ModuleType("torchaudio._extension")
    stand_in.__path__ = [str(Path(spec.origin).parent / "_extension")]

    def fail_if_no_align(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.wraps(function)(_refusing(f"torchaudio::{function.__name__}", why))

    vars(stand_in).update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _check_cuda_version=lambda: None,
        _load_lib=lambda name: False,
        fail_if_no_align=fail_if_no_align,
    )
    sys.modules["torchaudio._extension"] = stand_in


def _finish_torchaudio(why: str) -> None:
    vars(sys.modules["torchaudio"])["_extension"] = sys.modules["torchaudio._extension"]
    _refuse_operators("torchaudio", why)

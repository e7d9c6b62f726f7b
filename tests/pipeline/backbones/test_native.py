"""torchvision and torchaudio beside a torch they were not built for; each test runs in a separate process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones import native


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _plain_import_works(name: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def vision_loads() -> bool:
    """Whether a plain import of torchvision works; skips when it is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return _plain_import_works("torchvision")


@pytest.fixture(scope="module")
def audio_loads() -> bool:
    """Whether a plain import of torchaudio works; skips when it is not installed."""
    if importlib.util.find_spec("torchaudio") is None:
        pytest.skip("torchaudio is not installed")
    return _plain_import_works("torchaudio")


def test_torchvision_transforms_and_models_work(vision_loads: bool) -> None:
    message = _run(
        """
import sys, torch
from caeav.pipeline.backbones.native import import_torchvision
tv = import_torchvision()
import torchvision
from torchvision.transforms import v2
from torchvision.ops import StochasticDepth
assert tv is torchvision is import_torchvision()
print(tuple(v2.Resize((8, 6))(torch.rand(3, 20, 30)).shape), tuple(torchvision.models.resnet18().fc.weight.shape))
"""
    )
    assert message.split("\n")[0] == "(3, 8, 6) (1000, 512)"


def test_a_missing_operator_is_named_when_it_is_called(vision_loads: bool) -> None:
    if vision_loads:
        pytest.skip("the compiled part of torchvision loads here, so nothing is missing")
    message = _run(
        """
import torch
from caeav.pipeline.backbones.native import MissingNativeError, import_torchvision
from caeav.manifests.core.errors import CaeavError
ops = import_torchvision().ops
calls = (
    lambda: ops.nms(torch.rand(2, 4), torch.rand(2), 0.5),
    lambda: torch.ops.torchvision.nms(torch.rand(2, 4), torch.rand(2), 0.5),
    lambda: ops.deform_conv2d(torch.rand(1, 1, 4, 4), torch.rand(1, 2, 4, 4), torch.rand(1, 1, 1, 1)),
)
for call in calls:
    try:
        call()
    except MissingNativeError as error:
        assert isinstance(error, CaeavError) and isinstance(error, RuntimeError)
        print(str(error).split(" is not available")[0])
"""
    )
    assert message.split() == ["torchvision::nms", "torchvision::nms", "torchvision::deform_conv2d"]


def test_torchaudio_transforms_work(audio_loads: bool) -> None:
    message = _run(
        """
import torch
from caeav.pipeline.backbones.native import import_torchaudio
ta = import_torchaudio()
x = torch.sin(torch.arange(16000) * 0.1)[None]
print(tuple(ta.transforms.MelSpectrogram(16000, n_mels=32)(x).shape))
print(tuple(ta.transforms.Resample(16000, 8000)(x).shape))
print(tuple(ta.compliance.kaldi.fbank(x).shape))
print(tuple(ta.functional.lowpass_biquad(x, 16000, 1000.0).shape))
"""
    )
    assert message.split("\n")[:4] == ["(1, 32, 81)", "(1, 8000)", "(98, 23)", "(1, 16000)"]


def test_a_missing_torchaudio_operator_is_named(audio_loads: bool) -> None:
    if audio_loads:
        pytest.skip("the compiled part of torchaudio loads here, so nothing is missing")
    message = _run(
        """
import torch
from caeav.pipeline.backbones.native import MissingNativeError, import_torchaudio
ta = import_torchaudio()
try:
    ta.functional.forced_align(torch.rand(1, 4, 3), torch.ones(1, 2, dtype=torch.int32))
except MissingNativeError as error:
    print(error)
"""
    )
    assert message.startswith("torchaudio::forced_align is not available: the compiled part of torchaudio")
    assert "next: install the torchaudio build made for this torch" in message


def test_nothing_is_changed_where_the_plain_import_works() -> None:
    """With a stand-in package, since the real ones may not load here."""
    _run(
        """
import sys, types
from caeav.pipeline.backbones import native
good = sys.modules["torchvision"] = types.ModuleType("torchvision")
assert native.import_torchvision() is good
assert not native._libraries and "torch" not in sys.modules
"""
    )


def test_a_package_that_is_not_installed_is_reported() -> None:
    message = _run(
        """
import sys
from pathlib import Path
from types import ModuleType
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name == "torchaudio":
            raise ModuleNotFoundError("No module named 'torchaudio'", name="torchaudio")
sys.meta_path.insert(0, Nothing())
from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.native import import_torchaudio
try:
    import_torchaudio()
except CaeavError as error:
    print(error)
"""
    )
    assert message.startswith("torchaudio is not installed") and "caeav[vision]" in message


def test_decoding_imports_neither_package() -> None:
    _run(
        """
import sys
from pathlib import Path
from types import ModuleType
import caeav.pipeline.media.pyav, caeav.pipeline.media.workers.pool, caeav.pipeline.backbones.native
assert not {"torch", "torchvision", "torchaudio", "torchcodec", "decord"} & set(sys.modules)
"""
    )


def test_a_failing_import_is_prepared_for_and_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that lacks another one counts as installed; for a missing module nothing is prepared."""
    (tmp_path / "caeav_tried.py").write_text("import caeav_lacking\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    message: list[str] = []

    def prepare(why: str) -> None:
        message.append(f"prepared: {why}")
        monkeypatch.setitem(sys.modules, "caeav_lacking", ModuleType("caeav_lacking"))

    module = native._imported("caeav_tried", prepare, message.append)
    assert module.__name__ == "caeav_tried"
    assert message == ["prepared: No module named 'caeav_lacking'", "No module named 'caeav_lacking'"]
    monkeypatch.delitem(sys.modules, "caeav_tried")
    monkeypatch.delitem(sys.modules, "caeav_lacking")
    with pytest.raises(
        CaeavError, match=r"caeav_tried does not load: .*; without its compiled part: No module"
    ):
        native._imported("caeav_tried", message.append, message.append)
    assert "caeav_tried" not in sys.modules and len(message) == 3
    with pytest.raises(CaeavError, match="caeav_nowhere is not installed"):
        native._imported("caeav_nowhere", message.append, message.append)
    assert len(message) == 3

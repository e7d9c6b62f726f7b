"""Number formats of tokens: what is stored, and how closely it reads back as floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_numpy
from safetensors.torch import load as load_torch

from caeav.manifests.clip import Clip, Manifest
from caeav.pipeline.store import (
    Recipe,
    Record,
    StoreReader,
    open_for_writing,
)
from caeav.pipeline.store.dtypes import BFLOAT16, DTYPES, dtype_name, floats, not_finite, stored
from caeav.pipeline.store.payload import (
    encode_arrays,
)


def tokens(seed: int = 0) -> np.ndarray:
    """`[T, L, C]` with channels of very different size."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((4, 9, 16)) * 10.0 ** rng.uniform(-4, 3, 16)).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_dtype_reads_back_as_floats_within_its_rounding_error(dtype: str) -> None:
    x = tokens()
    back = floats(stored({"visual.a": x}, dtype))
    assert set(back) == {"visual.a"}
    y = back["visual.a"].astype(np.float64)
    largest = np.abs(x).max(axis=(0, 1))
    allowed = {
        "float32": 0 * x,
        "float16": np.abs(x) * 2.0**-10 + 2.0**-24,
        "bfloat16": np.abs(x) * 2.0**-8,
        "int8": np.broadcast_to(largest * (1 / 254 + 2.0**-11), x.shape) + 2.0**-24,
    }[dtype]
    assert (np.abs(y - x) <= allowed).all()
    assert back["visual.a"].dtype == {"float16": np.float16, "int8": np.float16}.get(dtype, np.float32)


def test_bfloat16_has_torchs_bits_and_is_stored_in_plain_safetensors() -> None:
    x = np.concatenate([tokens().ravel(), np.array([0.0, -0.0, 1e-40, 3.39e38, np.inf, -np.inf], np.float32)])
    kept = stored({"a": x}, "bfloat16")["a"]
    assert kept.dtype == BFLOAT16
    wanted = torch.from_numpy(x).to(torch.bfloat16)
    np.testing.assert_array_equal(kept.view("<u2"), wanted.view(torch.uint16).numpy())
    payload = b"".join(chunk.tobytes() for chunk in encode_arrays({"a": kept}))
    assert torch.equal(load_torch(payload)["a"], wanted)


def test_int8_is_stored_in_plain_safetensors_with_its_scales() -> None:
    x = tokens()
    payload = b"".join(chunk.tobytes() for chunk in encode_arrays(stored({"a": x}, "int8")))
    loaded = load_numpy(payload)
    assert {name: (array.dtype.name, array.shape) for name, array in loaded.items()} == {
        "a": ("int8", (4, 9, 16)),
        "a.scale": ("float32", (16,)),
    }
    assert (np.abs(loaded["a"]).max(axis=(0, 1)) == 127).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_detected_in_every_dtype(dtype: str, bad: float) -> None:
    x = tokens()
    assert sum(map(not_finite, stored({"a": x}, dtype).values())) == 0
    x[2, 3, 4] = bad
    assert sum(map(not_finite, stored({"a": x}, dtype).values())) == 1


def test_overflow_is_detected_in_the_dtypes_that_overflow() -> None:
    x = np.full((1, 1, 2), 1e5, np.float32)
    seen = {dtype: sum(map(not_finite, stored({"a": x}, dtype).values())) for dtype in DTYPES}
    assert seen == {"float16": 2, "bfloat16": 0, "float32": 0, "int8": 2}


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_channel_that_int8_cannot_hold_becomes_zeros_with_a_non_finite_scale(bad: float) -> None:
    x = np.full((2, 3, 2), 5.0, np.float32)
    x[1, 1, 1] = bad
    kept = stored({"a": x}, "int8")
    assert (kept["a"][..., 0] == 127).all() and (kept["a"][..., 1] == 0).all()
    assert np.isfinite(kept["a.scale"]).tolist() == [True, False]


def test_a_channel_of_zeros_stays_zero_in_int8() -> None:
    x = np.zeros((2, 3, 2), np.float32)
    x[..., 1] = 5.0
    np.testing.assert_array_equal(floats(stored({"a": x}, "int8"))["a"], x.astype(np.float16))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_store_returns_floats_under_the_names_of_the_taps(dtype: str, tmp_path: Path) -> None:
    manifest = Manifest("d", 4, 1.0, (), tuple(Clip(key, key, 0.0, 4.0) for key in ("a", "b")))
    recipe = Recipe("tokens", "x", {"dtype": dtype, "shard_clips": 2})
    with open_for_writing(tmp_path, recipe, manifest) as writer:
        [plan] = writer.plan()
        writer.publish(
            plan, {key: Record(key, stored({"visual.a": tokens(i)}, dtype)) for i, key in enumerate("ab")}
        )
        writer.finish()
    reader = StoreReader.open(writer.path)
    assert set(reader.array_specs()) == {"visual.a"}
    assert reader.array_specs()["visual.a"].shape == (4, 9, 16)
    np.testing.assert_allclose(
        reader.read("b").arrays["visual.a"], floats(stored({"x": tokens(1)}, dtype))["x"]
    )


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000, 0x7FFFFFFF], np.uint32)
    kept = stored({"x": bits.view(np.float32)}, "bfloat16")["x"]
    assert kept.view("<u2").tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xBF82, 0x7FC0]
    assert dtype_name(kept) == "bfloat16" and dtype_name(np.zeros(1, np.int8)) == "int8"


def test_int8_has_one_scale_per_channel_and_steps_of_both_signs() -> None:
    array = np.array([[127.0, -254.0, 0.0], [-63.4, 1.0, 0.0]], np.float32)
    kept = stored({"x": array}, "int8")
    assert kept["x"].tolist() == [[127, -127, 0], [-63, 0, 0]]
    assert kept["x.scale"].tolist() == [1.0, 2.0, 0.0]
    read = floats(kept)
    assert {*read} == {"x"} and read["x"].dtype == np.float16
    assert read["x"].tolist() == [[127.0, -254.0, 0.0], [-63.0, 0.0, 0.0]]
    most = float(np.finfo(np.float16).max)
    assert np.isfinite(stored({"x": np.full((1, 1), most, np.float32)}, "int8")["x.scale"]).all()
    assert np.isinf(stored({"x": np.full((1, 1), most + 64, np.float32)}, "int8")["x.scale"]).all()
    alone = {"x.scale": np.ones(1, np.float32)}
    assert {*floats(alone)} == {"x.scale"}, "an array that only has such a name is passed through"

"""Rules of decoding without any file: display matrices, clocks that restart, plans, mixing weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from caeav.pipeline.media.clock import Clock
from caeav.pipeline.media.frames import Orientation
from caeav.pipeline.media.mixing import mix_gain, mix_to_mono
from caeav.pipeline.media.scan import Plan, Scan

ONE = 1 << 16
FRAME = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("left_right", [False, True])
@pytest.mark.parametrize("top_bottom", [False, True])
def test_a_display_matrix_maps_each_pixel(transposed: bool, left_right: bool, top_bottom: bool) -> None:
    """Point (x, y) of the stored frame is shown at (m0 x + m3 y, m1 x + m4 y)."""
    across, down = (-ONE if left_right else ONE), (-ONE if top_bottom else ONE)
    straight, turned = [across, 0, 0, 0, down, 0], [0, down, 0, across, 0, 0]
    matrix = [*(turned if transposed else straight), 0, 0, 1 << 30]
    found = Orientation.of(matrix)
    assert (found.transposed, found.left_right, found.top_bottom) == (transposed, left_right, top_bottom)
    shown = found.apply(FRAME)
    height, width = shown.shape[:2]
    for y in range(2):
        for x in range(3):
            to_x, to_y = ((matrix[0] * x + matrix[3] * y) // ONE, (matrix[1] * x + matrix[4] * y) // ONE)
            at = (to_y + (height - 1) * top_bottom, to_x + (width - 1) * left_right)
            assert (shown[at] == FRAME[y, x]).all()
    rotations = [np.rot90(FRAME, k) for k in range(4)]
    turned_by = [k for k, each in enumerate(rotations) if each.shape == shown.shape and (each == shown).all()]
    assert found.mirrored is (not turned_by)
    if turned_by:
        assert found.turned_deg % 360 == 90 * turned_by[0]
        assert (found.after_turning(shown) == shown).all()


def packet(index: int, at: int, length: int = 40, kind: str = "video") -> Any:
    stream = SimpleNamespace(type=kind)
    return SimpleNamespace(stream_index=index, dts=at, pts=at, duration=length, stream=stream)


def facts(container: str = "mpegts", codec: str = "h264") -> Any:
    return SimpleNamespace(container=container, video=SimpleNamespace(codec=codec))


def straightened(clock: Clock, stamps: list[int]) -> list[int]:
    found = []
    for at in stamps:
        one = packet(0, at)
        assert clock.straighten(one, 0.001)
        assert one.pts == one.dts
        found.append(one.dts)
    return found


def test_a_clock_that_restarts_continues_where_it_was() -> None:
    clock = Clock(facts(), restarts=True)
    assert straightened(clock, [1000, 1040, 1080]) == [1000, 1040, 1080]
    assert straightened(clock, [0, 40]) == [1120, 1160] and clock.parts == 2
    assert straightened(clock, [80]) == [1200] and clock.parts == 2


@pytest.mark.parametrize(("jump", "parts"), [(9_900, 1), (10_100, 2)])
def test_a_gap_of_ten_seconds_is_a_new_part(jump: int, parts: int) -> None:
    clock = Clock(facts(), restarts=True)
    straightened(clock, [0, 40])
    found = straightened(clock, [80 + jump])
    assert clock.parts == parts and found == [80 + jump if parts == 1 else 80]


def test_rounding_is_no_new_part() -> None:
    clock = Clock(facts(), restarts=True)
    assert straightened(clock, [0, 40, 80, 60, 120]) == [0, 40, 80, 60, 120] and clock.parts == 1


def test_streams_share_the_parts() -> None:
    clock = Clock(facts(), restarts=True)
    for at in (0, 500, 1000):
        for index, kind in ((0, "video"), (1, "audio")):
            clock.straighten(packet(index, at, 500, kind), 0.001)
    audio, frame = packet(1, 0, 500, "audio"), packet(0, 0, 500)
    clock.straighten(audio, 0.001)
    clock.straighten(frame, 0.001)
    assert (audio.dts, frame.dts, clock.parts) == (1500, 1500, 2)


def plan(video_s: list[float], **other: Any) -> Plan:
    from caeav.pipeline.media.clip import Sampling

    scan = Scan(video_s=video_s, **other)
    about = SimpleNamespace(video=SimpleNamespace(fps=20.0))
    return Plan(about, scan, 3.0, Sampling(4, 0.5, 10), None)  # type: ignore[arg-type]


def test_a_plan_lists_the_wanted_times_and_the_frame_gap() -> None:
    made = plan([0.0, 0.1, 0.2, 0.9])
    assert made.end_s == 5.0 and made.wanted_s == [3.25, 3.75, 4.25, 4.75]
    assert made.frame_gap_s == pytest.approx(0.1)  # the usual one
    assert plan([1.0]).frame_gap_s == pytest.approx(1 / 20)
    assert made.video_end_s is None
    assert plan([0.0, 0.1], video_over=True).video_end_s == pytest.approx(0.2)
    assert plan([0.0, 0.1], video_over=True, video_end_s=0.5).video_end_s == 0.5


def test_a_frame_is_shown_until_the_next_or_the_end_of_its_packet() -> None:
    made = plan([0.0, 0.1, 0.2], video_end_s=0.9)
    assert made.shown_until_s(0.2) == 0.9  # the last frame, until the end of its packet
    assert made.shown_until_s(0.0) == pytest.approx(0.1)
    assert made.shown_until_s(0.5) == pytest.approx(0.6)
    assert made.is_stale(0.9, 0.2, None) and not made.is_stale(0.89, 0.2, None)
    assert not made.is_stale(5.0, 0.2, 0.25) and not made.is_stale(5.0, 0.1, None)
    assert [made.scan.expected_s(t) for t in (-0.1, 0.0, 0.15, 9.0)] == [None, 0.0, 0.1, 0.2]
    assert [made.scan.next_s(t) for t in (-0.1, 0.0, 0.15, 0.2)] == [0.0, 0.1, 0.2, None]


def test_channels_are_mixed_without_clipping() -> None:
    ones = np.ones((2, 512), np.float32)
    mono, loudest = mix_to_mono(ones * 0.5, ("FL", "FR"), 16_000)
    assert mono == pytest.approx(np.full(512, 0.5), abs=1e-6) and loudest == 0.5
    mono, loudest = mix_to_mono(np.stack([ones[0], -ones[0]]) * 0.25, ("FL", "FR"), 16_000)
    assert float(np.abs(mono).max()) < 1e-6 and loudest == 0.25
    counted = np.arange(1, 13, dtype=np.float32)[:, None].repeat(64, axis=1) / 100
    mono, _ = mix_to_mono(counted, ("NONE",) * 12, 16_000)
    assert mono == pytest.approx(np.full(64, 0.065), abs=1e-5)
    assert mix_gain(("FL", "FR")) == pytest.approx(2**0.5, abs=1e-3)

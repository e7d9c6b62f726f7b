"""caeav compared with the `ffmpeg` command on media of all kinds with known content, for each decoder.

The suite runs a pairwise sample of the cases, `CAEAV_DIFFERENTIAL=all` runs all (some minutes). Known differences are
listed in `known.py`; any other difference fails, and so does an outdated line there.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import compare
from cases import MATRICES, all_cases, one, pairwise
from child import SEGMENTS, Ours
from compare import TURNS, differences
from differential import DECODERS, Row, compared, loads, no_ffmpeg
from known import KNOWN, Known, outdated, unexplained
from making import Case, make
from oracle import Answer, ask
from truth import HEIGHT, RATE_HZ, WIDTH, noise, number_in, picture, place_of

SAMPLE = 26
CASES = all_cases() if os.environ.get("CAEAV_DIFFERENTIAL") == "all" else pairwise(all_cases(), SAMPLE)

Rows = dict[tuple[str, str], list[Row]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, dict[str, str]]:
    """All rows by file and decoder, and the reasons for files that are not made."""
    why = no_ffmpeg()
    if why:
        pytest.skip(why)
    found: Rows = defaultdict(list)
    missing: dict[str, str] = {}
    present = [name for name in DECODERS if loads(name)]
    for row in compared(CASES, present, tmp_path_factory.mktemp("differential")):
        if isinstance(row, str):
            missing[row.split(" is not made")[0]] = row
        else:
            found[row.case.file, row.decoder].append(row)
    return found, missing


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_decodes_as_ffmpeg_does(
    case: Case, decoder: str, rows: tuple[Rows, dict[str, str]], needs: Callable[[str], None]
) -> None:
    found, missing = rows
    if decoder != "pyav":
        needs(decoder)
    if case.file in missing:
        pytest.skip(missing[case.file])
    clips = found[case.file, decoder]
    assert len(clips) == len(case.starts_s)
    strange = {f"{row.start_s:g} s, {kind}": row.found[kind] for row in clips for kind in unexplained(row)}
    assert strange == {}
    assert outdated(clips) == []


def test_every_known_difference_has_a_clip_and_a_reason() -> None:
    """A line that matches no clip would never be noticed as outdated."""
    clips = [
        Row(case, start, name, {}) for case in all_cases() for start in case.starts_s for name in DECODERS
    ]
    for known in KNOWN:
        assert known.kind in compare.KINDS and len(known.why) > 10, known
        for name in known.decoders.split():
            assert any(known.covers(row) for row in clips if row.decoder == name), known


def test_names_of_cases_are_unique() -> None:
    files = [case.file for case in all_cases()]
    assert len(files) == len(set(files)) and len(files) > 200


@pytest.mark.skipif(bool(no_ffmpeg()), reason=no_ffmpeg() or "ffmpeg is here")
def test_ffmpeg_is_right_on_a_plain_file(tmp_path: Path) -> None:
    """Each picture has its time, and the sound its place."""
    case = one("plain", "mkv", "ffv1", "pcm_s16le", seconds=3.0)
    answer = ask(case, make(case, tmp_path), tmp_path)
    assert [number_in(image) for image in answer.images] == list(range(21))
    assert answer.times_s == pytest.approx([n / 7 for n in range(21)], abs=0.001)
    at_s, sure = place_of(answer.sound(1.0, 1.0))
    assert at_s == pytest.approx(1.0, abs=1 / RATE_HZ) and sure > 0.99
    assert answer.heard_share(2.5, 1.0) == pytest.approx(0.5)


# -- the comparison itself


CASE = one("made_up", "mkv", traits=("matrix",))
START_S = 1.0


def _answer(**other: object) -> Answer:
    """What ffmpeg would give of an undamaged file of 9 s."""
    images = np.stack([picture(n) for n in range(63)])
    wave = noise()[: 9 * RATE_HZ]
    return replace(
        Answer([n / 7 for n in range(63)], images, [WIDTH / HEIGHT] * 63, [WIDTH / HEIGHT] * 63, wave, ""),
        **other,
    )  # type: ignore[arg-type]


def _ours(start_s: float = START_S, **other: object) -> Ours:
    """What caeav should give of the same file."""
    thumbs = np.stack([picture(int((start_s + k + 0.5) * 7)) for k in range(SEGMENTS)])
    wave = noise()[round(start_s * RATE_HZ) :][: SEGMENTS * RATE_HZ]
    ok = (True,) * SEGMENTS
    return replace(Ours("", "", thumbs, WIDTH / HEIGHT, wave, ok, ok, ()), **other)  # type: ignore[arg-type]


def test_the_right_answer_has_no_difference() -> None:
    assert differences(CASE, START_S, _answer(), _ours()) == {}


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        (compare.CRASH, Ours(crashed="the process ended with -11")),
        (compare.REFUSED, Ours(refused="nothing decodes")),
        (compare.WRONG_PICTURE, _ours(thumbs=_ours(START_S + 1 / 7).thumbs)),
        (compare.WRONG_PICTURE, _ours(thumbs=np.zeros_like(_ours().thumbs))),
        (compare.LOST_PICTURE, _ours(frames_ok=(True, False, True))),
        (compare.LOST_PICTURE, _ours(thumbs=None)),
        (compare.LOOK, _ours(thumbs=_ours().thumbs[:, :, ::-1])),
        (compare.LOOK, _ours(thumbs=_ours().thumbs[..., ::-1])),
        (compare.SHAPE, _ours(shape=16 / 9)),
        (compare.WRONG_SOUND, _ours(wave=_ours(START_S + 0.5).wave)),
        (compare.WRONG_SOUND, _ours(wave=-_ours().wave)),
        (compare.WRONG_SOUND, _ours(wave=np.zeros_like(_ours().wave))),
        (compare.SHIFTED_SOUND, _ours(wave=_ours(START_S + 0.005).wave)),
        (compare.LOST_SOUND, _ours(audio_ok=(True, False, True))),
        (compare.LOST_SOUND, _ours(wave=None)),
        (compare.LEVEL, _ours(wave=_ours().wave * 0.7)),
        (compare.FALSE_DAMAGE, _ours(notes=(("damaged", "video: 3 errors"),))),
        (compare.SILENT_LOSS, _ours(frames_ok=(True, False, True))),
    ],
)  # fmt: skip
def test_each_kind_of_difference_is_detected(kind: str, ours: Ours) -> None:
    assert kind in differences(CASE, START_S, _answer(), ours)


@pytest.mark.parametrize("last", [7, 14])
def test_a_frame_shown_after_the_last_one_is_stale(last: int) -> None:
    answer = _answer(times_s=[n / 7 for n in range(last)], images=_answer().images[:last])
    ours = _ours(thumbs=np.stack([picture(last - 1)] * SEGMENTS))
    assert compare.STALE_PICTURE in differences(CASE, START_S, answer, ours)
    told = _ours(frames_ok=tuple(START_S + k < last / 7 for k in range(SEGMENTS)), thumbs=ours.thumbs,
                 notes=(("short_video", ""),))  # fmt: skip
    assert compare.STALE_PICTURE not in differences(CASE, START_S, answer, told)


def test_audio_called_real_where_there_is_none_is_detected() -> None:
    wave = np.concatenate([noise()[: 2 * RATE_HZ], np.zeros(7 * RATE_HZ, dtype=np.float32)])
    assert compare.FALSE_SOUND in differences(CASE, START_S, _answer(wave=wave), _ours())


def test_nothing_of_an_encrypted_file_may_be_called_real() -> None:
    case = replace(CASE, real=False, damaged=True)
    found = differences(case, START_S, _answer(), _ours())
    assert {compare.STALE_PICTURE, compare.FALSE_SOUND} <= set(found)
    assert differences(case, START_S, _answer(), Ours(refused="the file is encrypted")) == {}


@pytest.mark.parametrize("turn", sorted(MATRICES))
def test_the_number_of_a_rotated_frame_is_read(turn: int) -> None:
    case = replace(CASE, turn=turn)
    assert compare.number_shown(case, TURNS[turn](picture(0x1234))) == 0x1234


def test_a_known_difference_covers_only_its_kind_clip_and_decoder() -> None:
    known = Known("pyav", compare.LEVEL, "made_*@1", "for this test")
    row = Row(CASE, START_S, "pyav", {compare.LEVEL: "", compare.SHAPE: ""})
    assert known.fits(row, compare.LEVEL) and not known.fits(row, compare.SHAPE)
    assert not known.covers(replace(row, decoder="decord")) and not known.covers(replace(row, start_s=0.0))

"""Compares a clip decoded by caeav with the `ffmpeg` command: pictures, sound, and what is called real.

Each difference has a kind, which the table of known differences (`known.py`) uses, and a sentence with numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from child import SEGMENTS, Ours
from making import Case
from oracle import Answer
from truth import RATE_HZ, Float, Image, number_in, place_of

CRASH = "crash"
REFUSED = "refused"
WRONG_PICTURE = "wrong picture"
STALE_PICTURE = "stale picture"
LOST_PICTURE = "lost picture"
LOOK = "look"
SHAPE = "shape"
WRONG_SOUND = "wrong sound"
SHIFTED_SOUND = "shifted sound"
FALSE_SOUND = "false sound"
LOST_SOUND = "lost sound"
LEVEL = "level"
FALSE_DAMAGE = "false damage"
SILENT_LOSS = "silent loss"
KINDS = {
    CRASH: "the process that decodes dies",
    WRONG_PICTURE: "a picture is called real that ffmpeg does not show at that time",
    STALE_PICTURE: "a picture is called real where ffmpeg shows none (before the first, after the last)",
    WRONG_SOUND: "sound is called real that ffmpeg does not play at that time",
    SHIFTED_SOUND: "the right sound, but up to 0.1 s earlier or later",
    FALSE_SOUND: "sound is called real where ffmpeg plays none",
    REFUSED: "the clip is refused though ffmpeg shows or plays something of it",
    LOST_PICTURE: "a picture that ffmpeg shows is called not real",
    LOST_SOUND: "sound that ffmpeg plays is called not real",
    LOOK: "the right picture, turned, mirrored or coloured otherwise",
    SHAPE: "the right picture at another aspect ratio than ffmpeg displays, and no note says that it is kept as stored",
    LEVEL: "the right sound, more than 5 % louder or softer",
    FALSE_DAMAGE: "an undamaged file is called damaged, and nothing of it is lost",
    SILENT_LOSS: "something is not real and no note says so",
}
"""The kinds of difference, worst first."""

LOST_NOTES = {"damaged", "short_video", "short_audio", "no_video", "no_audio"}
EDGE_S = 0.002
SAME_COLOUR = 9.0  # mean difference of 255, lossy decoders of two versions included
SAME_SOUND = 0.97
SAME_LEVEL = 0.05
SAME_SHAPE = 0.04
SAME_TIME_S = 0.001
NEAR_S = 0.1  # `async` fills no shorter gap, so behind damage and joins ffmpeg's own place is no better
BETWEEN = 4  # places between two samples that are tried

TURNS: tuple[Callable[[Image], Image], ...] = (
    lambda i: i,
    lambda i: np.rot90(i, 1),
    lambda i: np.rot90(i, 2),
    lambda i: np.rot90(i, 3),
    lambda i: i[:, ::-1],
    lambda i: i[::-1],
    lambda i: i.transpose(1, 0, 2),
    lambda i: np.rot90(i, 2).transpose(1, 0, 2),
)
"""What a display matrix does to the stored picture, by `Case.turn`; 1 and 3 are inverse to each other."""


def number_shown(case: Case, image: Image) -> int:
    """The number in a displayed picture, read after undoing its display matrix."""
    inverse = {1: 3, 3: 1}.get(case.turn, case.turn)
    return number_in(TURNS[inverse](image))


def differences(case: Case, start_s: float, answer: Answer, ours: Ours) -> dict[str, str]:
    """Kind -> sentence for everything in which `ours` differs from ffmpeg."""
    if ours.crashed:
        return {CRASH: ours.crashed}
    found: dict[str, str] = {}
    expected_frames, expected_sound = _expected(case, start_s, answer)
    if ours.refused:
        real = real_segments(case, start_s, answer)
        return {REFUSED: f"{ours.refused} ({real} real segments in ffmpeg)"} if real else {}
    for k in range(SEGMENTS):
        if case.has_video:
            _picture(case, answer, start_s, k, ours, expected_frames[k], found)
        if case.has_audio:
            _sound(case, answer, start_s, k, ours, expected_sound[k], found)
    codes = {code for code, _ in ours.notes}
    if not case.damaged and "damaged" in codes and not found.keys() & {LOST_PICTURE, LOST_SOUND}:
        found[FALSE_DAMAGE] = next(detail for code, detail in ours.notes if code == "damaged")
    lost = (case.has_video and not all(ours.frames_ok)) or (case.has_audio and not all(ours.audio_ok))
    if lost and not codes & LOST_NOTES:
        found[SILENT_LOSS] = f"frames_ok {ours.frames_ok} audio_ok {ours.audio_ok}, notes {sorted(codes)}"
    return found


def real_segments(case: Case, start_s: float, answer: Answer) -> int:
    """The number of segments in which ffmpeg certainly shows a picture, plus those in which it plays sound."""
    return sum(real is True for each in _expected(case, start_s, answer) for real in each)


def _expected(case: Case, start_s: float, answer: Answer) -> tuple[list[bool | None], list[bool | None]]:
    """Per segment, whether ffmpeg shows a picture and whether it plays sound; None where both answers are right."""
    if not case.real:
        return [False] * SEGMENTS, [False] * SEGMENTS
    starts_s = [start_s + k for k in range(SEGMENTS)]
    frames = [_frame_is_real(case, answer, at) for at in starts_s]
    return frames, [_sound_is_real(case, answer, at) for at in starts_s]


def _frame_is_real(case: Case, answer: Answer, from_s: float) -> bool | None:
    """Whether ffmpeg shows a picture in the second from `from_s` on; None where both answers are right."""
    if not answer.times_s:
        return False
    centre_s = from_s + 0.5
    first_s, last_s, gap_s = answer.times_s[0], answer.times_s[-1], answer.gap_s
    if from_s + 1.0 <= first_s - EDGE_S or from_s >= last_s + 1.5 * gap_s + EDGE_S:
        return False
    at = answer.shown(centre_s)
    if at is None or (case.damaged and number_shown(case, answer.images[at]) < case.number_at(centre_s) - 1):
        return None  # what was lost leaves an older picture on the screen
    if centre_s < last_s + 0.9 * gap_s or answer.times_s[at] >= from_s + EDGE_S:
        return True
    return None


def _sound_is_real(case: Case, answer: Answer, from_s: float) -> bool | None:
    """Whether ffmpeg plays at least half of the second from `from_s` on; None where both answers are right."""
    if "silent" in case.traits:
        return True if from_s + 1.0 <= case.parts[0].seconds else None
    if "short" in case.traits and from_s == 0.0:
        return None  # the whole file may be shorter than half a second
    share = answer.heard_share(from_s, 1.0)
    return None if 0.39 < share < 0.61 else share > 0.5


def _keep(found: dict[str, str], kind: str, said: str) -> None:
    found[kind] = f"{found[kind]}; {said}" if kind in found else said


def _picture(
    case: Case,
    answer: Answer,
    start_s: float,
    k: int,
    ours: Ours,
    expected: bool | None,
    found: dict[str, str],
) -> None:
    centre_s = start_s + k + 0.5
    ok = bool(ours.frames_ok[k]) and ours.thumbs is not None
    if not ok:
        if expected:
            at = answer.shown(centre_s)
            number = number_shown(case, answer.images[at]) if at is not None else None
            _keep(found, LOST_PICTURE, f"picture {number} at {centre_s:.2f} s")
        return
    number = number_shown(case, ours.thumbs[k])
    if expected is False:
        _keep(found, STALE_PICTURE, f"picture {number} at {centre_s:.2f} s")
        return
    candidates = answer.candidates(centre_s)
    apart = [
        float(np.abs(ours.thumbs[k].astype(int) - answer.images[at].astype(int)).mean()) for at in candidates
    ]
    numbers = [number_shown(case, answer.images[at]) for at in candidates]
    same = [n for n, theirs in enumerate(numbers) if theirs == number]
    best = min(same or range(len(apart)), key=lambda n: apart[n])
    theirs = numbers[best]
    if not same or (number == -1 and apart[best] > SAME_COLOUR):
        if (
            "matrix" in case.traits
            and theirs != -1
            and theirs in {number_in(turn(ours.thumbs[k])) for turn in TURNS}
        ):
            _keep(found, LOOK, f"picture {theirs} at {centre_s:.2f} s is turned otherwise")
        elif case.damaged and theirs < number <= case.number_at(centre_s):
            pass  # more was recovered than by ffmpeg: the picture is nearer to the right one
        elif -1 not in (theirs, number) or apart[best] > SAME_COLOUR:
            _keep(found, WRONG_PICTURE, f"picture {number} instead of {theirs} at {centre_s:.2f} s")
    elif apart[best] > SAME_COLOUR:
        _keep(found, LOOK, f"picture {number} at {centre_s:.2f} s differs by {apart[best]:.0f} of 255")
    shape = answer.shapes[candidates[best]]
    if any(code == "non_square_pixels" for code, _ in ours.notes):
        shape = answer.stored[candidates[best]]  # kept as stored, and noted
    if abs(ours.shape / shape - 1) > SAME_SHAPE and SHAPE not in found:
        found[SHAPE] = f"width is {ours.shape:.3f} of the height instead of {shape:.3f}"


def _sound(
    case: Case,
    answer: Answer,
    start_s: float,
    k: int,
    ours: Ours,
    expected: bool | None,
    found: dict[str, str],
) -> None:
    from_s = start_s + k
    ok = bool(ours.audio_ok[k]) and ours.wave is not None
    theirs = answer.sound(from_s, 1.0)
    if not ok:
        if expected:
            _keep(found, LOST_SOUND, f"{_describe(theirs)} at {from_s:.2f} s")
        return
    wave = ours.wave[k * RATE_HZ : (k + 1) * RATE_HZ]
    if expected is False:
        _keep(found, FALSE_SOUND, f"{_describe(wave)} at {from_s:.2f} s")
        return
    ours_norm, theirs_norm = float(np.sqrt((wave**2).sum())), float(np.sqrt((theirs**2).sum()))
    if theirs_norm < 1e-2 * RATE_HZ**0.5 * 0.1:
        if ours_norm > 2 * theirs_norm + 0.2:
            _keep(found, WRONG_SOUND, f"{_describe(wave)} instead of silence at {from_s:.2f} s")
        return
    lag_s, alike = _lag(wave, theirs)
    broken = case.damaged or "joined" in case.traits
    if broken and alike > 0.4 and abs(place_of(theirs)[1]) < 0.93:
        return  # the second with the break consists of two pieces
    if alike < SAME_SOUND:
        said = f"{_describe(wave)} instead of {_describe(theirs)} at {from_s:.2f} s (alike {alike:.2f})"
        _keep(found, WRONG_SOUND, said)
    elif abs(lag_s) > (NEAR_S if broken else SAME_TIME_S):
        _keep(
            found,
            SHIFTED_SOUND,
            f"{1000 * lag_s:.1f} ms too {'late' if lag_s > 0 else 'early'} at {from_s:.2f} s",
        )
    elif abs(ours_norm / theirs_norm - 1) > SAME_LEVEL:
        _keep(found, LEVEL, f"{ours_norm / theirs_norm:.3f} times as loud at {from_s:.2f} s")


def _lag(ours: Float, theirs: Float) -> tuple[float, float]:
    """How much later `ours` is than `theirs`, within `NEAR_S`, and their correlation at that lag (1: the same).

    The search includes fractions of a sample: half a sample at 16 kHz is a quarter of a wave of 3 kHz.
    """
    near = round(NEAR_S * RATE_HZ) * BETWEEN
    length = 1 << (2 * ours.size).bit_length()
    spectrum = np.fft.rfft(ours, length) * np.conj(np.fft.rfft(theirs, length))
    product = np.fft.irfft(spectrum, length * BETWEEN) * BETWEEN
    lags = np.concatenate([np.arange(-near, 0), np.arange(near + 1)])
    lag = int(lags[np.argmax(product[lags])])
    whole = round(lag / BETWEEN)
    mine, other = (
        (ours[whole:], theirs[: theirs.size - whole]) if whole >= 0 else (ours[:whole], theirs[-whole:])
    )
    norm = float(np.sqrt((mine**2).sum() * (other**2).sum())) + 1e-9
    return lag / BETWEEN / RATE_HZ, float(product[lag]) / norm


def _describe(wave: Float) -> str:
    if float(np.abs(wave).max(initial=0.0)) < 1e-4:
        return "silence"
    at_s, sure = place_of(wave)
    return f"sound of {at_s:.3f} s (r {sure:.2f})"

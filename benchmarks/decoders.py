"""Which decoder is fastest, leanest and most truthful: one table, each decoder alone in a process of one thread.

    python benchmarks/decoders.py [--rounds 5] [--media FOLDER]

Without a folder it takes the real clips below CAEAV_SHARED, if set, and always a written one (10 s, 640x360,
30 fps, H.264 + AAC). Speed is clips per second of processor time, so that other work on the machine does not count. A
clip is 10 s: 10 frames and mono audio at 32 kHz. `pyav, a seek per frame` is the other way to use PyAV: one seek and a
short decode for each wanted frame, and a separate pass for the audio.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from caeav.pipeline.media.clip import DecodeError, Sampling
from caeav.pipeline.media.registry import decoders

SAMPLING = Sampling(10, 1.0, 32000)
SEEKING = "pyav, a seek per frame"
MEDIA = {".mp4", ".mkv", ".webm", ".avi", ".mov"}


def write_clip(path: Path) -> None:
    """A moving pattern and a chirp, compressed as clips of this field are."""
    import av

    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=30, options={"crf": "23", "preset": "fast"})
        video.width, video.height, video.pix_fmt = 640, 360, "yuv420p"
        audio = out.add_stream("aac", rate=44100, layout="stereo")
        y, x = np.mgrid[:360, :640]
        grain = np.random.default_rng(0).integers(0, 40, (360, 640, 3), dtype=np.uint8)
        for n in range(300):
            waves = (np.sin(x / 23 + n / 9) + np.cos(y / 17 - n / 5)) * 50 + 128
            picture = np.clip(waves[..., None] + np.roll(grain, n, 1), 0, 255).astype(np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        times = np.arange(441000) / 44100
        tone = np.tile((0.4 * np.sin(2 * np.pi * (200 + 60 * times) * times)).astype(np.float32), (2, 1))
        for at in range(0, tone.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(tone[:, at : at + 1024]), "fltp", "stereo"
            )
            frame.sample_rate, frame.pts, frame.time_base = 44100, at, Fraction(1, 44100)
            out.mux(audio.encode(frame))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))


def seek_per_frame(path: str) -> list[Any]:
    """The alternative: seek to each wanted time and decode up to it, then decode the audio in a second pass."""
    import av

    from caeav.pipeline.media.audio import AudioLine
    from caeav.pipeline.media.mixing import Mixer

    frames = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for wanted_s in SAMPLING.centres_s(0.0):
            container.seek(int(wanted_s * av.time_base), backward=True)
            shown = None
            for frame in container.decode(stream):
                if shown is not None and frame.time > wanted_s:
                    break
                shown = frame
            frames.append(shown.to_ndarray(format="rgb24"))
    with av.open(path) as container:
        stream = container.streams.audio[0]
        line, mixer = AudioLine(float(stream.time_base), (0.0, 12.0)), Mixer()
        for frame in container.decode(stream):
            line.add(frame.time, mixer.mono(frame), frame.sample_rate)
        line.audio().window(0.0, SAMPLING.samples, SAMPLING.rate_hz)
    return frames


def measure(name: str, files: list[str], rounds: int) -> dict[str, Any]:
    """In this process: speed, memory, and a digest of every clip to compare decoders by."""
    decoder = None if name == SEEKING else decoders[name]()
    speeds, growth, seen = [], [], {}
    for turn in range(rounds + 1):  # the first one warms up
        began = time.process_time()
        for file in files:
            if decoder is None:
                seek_per_frame(file)
                continue
            try:
                clip = decoder.decode(file, 0.0, SAMPLING)
            except DecodeError as error:
                seen[file] = {"refused": str(error)}
                continue
            small = None if clip.frames is None else clip.frames[:, ::8, ::8].astype(int).tolist()
            seen[file] = {
                "notes": sorted({note.code for note in clip.notes}),
                "ok": [sum(clip.frames_ok), sum(clip.audio_ok)],
                "frames": small if turn == 0 else seen[file]["frames"],
                "wave": None if clip.wave is None else clip.wave[::16].round(4).tolist(),
            }
        speeds.append(len(files) / (time.process_time() - began))
        growth.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    grown = (growth[-1] - growth[1]) / max(1, (rounds - 1) * len(files))
    return {"clips_s": speeds[1:], "rss_mb": growth[-1], "grown_mb": grown, "seen": seen}


def in_own_process(name: str, files: list[str], rounds: int) -> dict[str, Any] | None:
    """`measure` in a fresh process of one thread; None when the decoder's library does not load."""
    command = [sys.executable, __file__, "--only", name, "--rounds", str(rounds), *files]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def differences(ours: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Worst mean difference of frames (of 255) and worst 99th percentile of audio (of full scale)."""
    frames = audio = 0.0
    for file, mine in ours.items():
        theirs = other.get(file, {})
        if "refused" in mine or "refused" in theirs or mine["ok"] != theirs["ok"]:
            continue
        if mine["frames"] and theirs["frames"]:
            frames = max(frames, float(np.abs(np.subtract(mine["frames"], theirs["frames"])).mean()))
        if mine["wave"] and theirs["wave"]:
            audio = max(audio, float(np.percentile(np.abs(np.subtract(mine["wave"], theirs["wave"])), 99)))
    return frames, audio


def table(
    files: list[str], rounds: int, names: tuple[str, ...] = ("pyav", SEEKING, "decord", "torchcodec")
) -> None:
    """Print one row per decoder."""
    print(
        f"{'decoder':24}{'clips/CPU s, median (rounds)':36}{'peak MB':>8}{'+MB/clip':>9}{'frames':>10}{'audio':>8}"
    )
    base = None
    for name in names:
        found = in_own_process(name, files, rounds)
        if found is None:
            continue
        base = base or found["seen"]
        speeds = found["clips_s"]
        each = f"{statistics.median(speeds):.1f} ({' '.join(f'{speed:.1f}' for speed in speeds)})"
        row = f"{name:24}{each:36}{found['rss_mb']:8.0f}"
        frames, audio = differences(base, found["seen"]) if found["seen"] else (0.0, 0.0)
        said = f"{frames:10.2f}{audio:8.4f}" if found["seen"] else ""
        print(f"{row}{found['grown_mb']:9.2f}{said}")
        for file, seen in found["seen"].items():
            if "refused" in seen:
                print(f"    {Path(file).name}: refused: {seen['refused'][:150]}")
            elif seen["ok"] != base[file].get("ok"):
                theirs = base[file].get("ok")
                print(f"    {Path(file).name}: real segments (frames, audio) {seen['ok']}, pyav {theirs}")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--media", type=Path, help="folder of media files")
    asked = parser.parse_args()
    if asked.only:
        json.dump(measure(asked.only, asked.files, asked.rounds), sys.stdout)
        return
    folder = asked.media
    if folder is None and os.environ.get("CAEAV_SHARED"):
        folder = Path(os.environ["CAEAV_SHARED"]) / "data" / "media"
    with tempfile.TemporaryDirectory() as temp:
        clip = Path(temp) / "written.mp4"
        write_clip(clip)
        print("one written clip, 640x360")
        table([str(clip)], asked.rounds * 3)
    if folder is not None:
        files = sorted(str(path) for path in folder.iterdir() if path.suffix in MEDIA)
        whole = [file for file in files if _whole(file)]
        print(f"\n{len(whole)} whole clips of {folder.name}/")
        table(whole, asked.rounds)
        rest = [file for file in files if file not in whole]
        print(f"\n{len(rest)} awkward files of {folder.name}/ (speed says little)")
        table(rest, 2, ("pyav", "decord", "torchcodec"))


def _whole(file: str) -> bool:
    """Whether a file holds 10 s of frames and audio, by PyAV."""
    try:
        clip = decoders["pyav"]().decode(file, 0.0, SAMPLING)
    except DecodeError:
        return False
    return all(clip.frames_ok) and all(clip.audio_ok)


if __name__ == "__main__":
    main()

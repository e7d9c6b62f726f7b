"""A clip that is not a video but one image per second beside a wav: how AVSBench is distributed.

The clip's media is the wav. The images of `audio_wav/<place>/<name>.wav` lie in `visual_frames/<place>/<name>/` or
`visual_frames/<name>/`, called `..._<second, from 1>.png`. Audio goes through the decoder in use, with all its checks;
images are read here, under the same limits, in the same process. Shapes: `T` segments, `H`x`W` pixels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.media.clip import DecodedClip, DecodeError, Limits, Note, Sampling
from caeav.pipeline.media.frames import Image, fill_holes
from caeav.pipeline.media.probe import library_message, regular_file

AUDIO, FRAMES = "audio_wav", "visual_frames"
MAX_IMAGES = 100_000

_NUMBERED = re.compile(r"(\d{1,9})\.(?:png|jpg|jpeg)", re.IGNORECASE)
_FORMATS = ("PNG", "JPEG")


def stills_folder(path: str) -> Path | None:
    """The folder of images that belong to a wav; None for other media."""
    wav = Path(path)
    if wav.suffix.lower() != ".wav":
        return None
    for above in wav.parents:
        if above.name == AUDIO:
            base, place = above.parent / FRAMES, wav.parent.relative_to(above)
            found = (folder for folder in (base / place / wav.stem, base / wav.stem) if folder.is_dir())
            return next(found, None)
    return None


def media_files(path: str) -> list[str]:
    """The files that the media at `path` consist of: the file itself and, for a wav, its images by name."""
    folder = stills_folder(path)
    if folder is None:
        return [path]
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        names = []
    return [path, *(os.path.join(folder, name) for name in names if _NUMBERED.search(name))]  # noqa: PTH118


def with_stills(
    decode_audio: Callable[[], Sequence[DecodedClip]],
    folder: Path,
    start_s: float,
    samplings: Sequence[Sampling],
    limits: Limits,
) -> list[DecodedClip]:
    """The clips of `decode_audio()`, one per sampling, with the images in `folder`.

    Segment `t` shows the image of the second in which its centre lies. A missing or damaged image is replaced by the
    one before it, marked not ok, and noted. Audio that does not decode is noted as long as there are images; without
    either `DecodeError` is raised.
    """
    frames, frames_ok, notes = _frames(folder, start_s, samplings[0], limits)
    facts: dict[str, Any] = {"codec": "stills", "fps": 1.0}
    if frames is not None:
        facts |= {"height": frames.shape[1], "width": frames.shape[2]}
    try:
        clips = decode_audio()
    except DecodeError as error:
        if frames is None:
            raise
        notes.append(Note("damaged", f"audio: {error}"))
        silent = (False,) * samplings[0].segments
        clips = [DecodedClip(None, None, frames_ok, silent) for _ in samplings]
    return [
        DecodedClip(
            frames,
            clip.wave,
            frames_ok,
            clip.audio_ok,
            [*(note for note in clip.notes if note.code != "no_video"), *notes],
            {**clip.facts, **({"video": dict(facts)} if frames is not None else {})},
        )
        for clip in clips
    ]


def _frames(
    folder: Path, start_s: float, sampling: Sampling, limits: Limits
) -> tuple[NDArray[np.uint8] | None, tuple[bool, ...], list[Note]]:
    """The images as frames `[T, H, W, 3]`, which of them are real, and notes."""
    files = _numbered(folder)
    wanted = [int(centre_s) + 1 for centre_s in sampling.centres_s(start_s)]
    images: dict[int, Image | None] = {}
    errors: list[str] = []
    resized = 0
    size: tuple[int, int] | None = None
    for number in dict.fromkeys(wanted):
        images[number] = None
        if number in files:
            try:
                image, natural = _read(files[number], size, limits)
            except DecodeError as error:
                errors.append(str(error))
                continue
            images[number] = image
            size = size or natural
            resized += natural != size
    missing = [number for number in wanted if number not in files]
    notes: list[Note] = []
    if missing:
        held = f"{len(missing)} of {len(wanted)} segments have none and hold the one before instead"
        notes.append(Note("short_video", f"{folder.name}/ has {len(files)} pictures; {held}"))
    if errors:
        notes.append(Note("damaged", f"video: {len(errors)} pictures do not decode, first: {errors[0]}"))
    if resized and size:
        notes.append(Note("size_changes", f"{resized} pictures scaled to the first's {size[0]}x{size[1]}"))
    shown = [images[number] for number in wanted]
    filled = fill_holes(shown)
    if not filled:
        return None, (False,) * len(wanted), [*notes, Note("no_video", f"no picture in {folder.name}/")]
    return np.stack(filled), tuple(image is not None for image in shown), notes


def _numbered(folder: Path) -> dict[int, Path]:
    """The folder's image files by number."""
    files: dict[int, Path] = {}
    try:
        for path in folder.iterdir():
            match = _NUMBERED.search(path.name)
            if match and match.end() == len(path.name):
                files[int(match.group(1))] = path
            if len(files) > MAX_IMAGES:
                raise DecodeError(f"{folder.name}/ holds more than the allowed {MAX_IMAGES} pictures")
    except OSError as error:
        raise DecodeError(f"cannot read {folder.name}/: {error.strerror}") from error
    return files


def _read(path: Path, size: tuple[int, int] | None, limits: Limits) -> tuple[Image, tuple[int, int]]:
    """An image as RGB uint8 `[H, W, 3]`, scaled to `size` (width, height) if given, and the size it is stored in."""
    from PIL import Image as Pillow

    regular_file(str(path), limits)
    try:
        with Pillow.open(path, formats=_FORMATS) as image_file:
            natural = image_file.size
            limits.check("picture size", natural[0] * natural[1], limits.frame_pixels, " pixels")
            rgb = image_file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        raise DecodeError(f"{path.name} is not a readable picture: {library_message(error)}") from error
    if size is not None and natural != size:
        rgb = rgb.resize(size, Pillow.Resampling.BICUBIC)
    return np.array(rgb, dtype=np.uint8), natural

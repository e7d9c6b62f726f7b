"""The table of known differences between a decoder and the `ffmpeg` command, each with its reason.

A difference that is not listed fails the test, and so does a line whose difference is gone. A line applies to clips
(file name and start), to some decoders, and to one kind of difference (`compare.KINDS`). Some differences are ffmpeg's
and disappear with another version, so outdated lines are reported only with the version that made the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import compare
from differential import Row, ffmpeg_version

DRAWN_UP_WITH = 5
"""ffmpeg's major version when the table was drawn up."""


@dataclass(frozen=True)
class Known:
    """decoders: names separated by spaces. clips: patterns (`*` is anything) of `FILE@START` separated by spaces."""

    decoders: str
    kind: str
    clips: str
    why: str

    def fits(self, row: Row, kind: str) -> bool:
        """Whether this line explains that `row` differs in `kind`."""
        return kind == self.kind and self.covers(row)

    def covers(self, row: Row) -> bool:
        """Whether this line is about the clip; refusing one that is empty in ffmpeg is no difference."""
        clip = f"{row.case.file}@{row.start_s:g}"
        listed = row.decoder in self.decoders.split() and (row.real > 0 or self.kind != compare.REFUSED)
        return listed and any(fnmatchcase(clip, pattern) for pattern in self.clips.split())


_WHY: dict[str, tuple[tuple[str, str, str], ...]] = {
    "sixteen channels without names: ffmpeg guesses places for them and mixes by those, caeav mixes them equally": (
        ("pyav decord torchcodec", compare.LEVEL, "layout_16_*@*"),
    ),
    "AVI keeps no times: behind a hole ffmpeg counts on, caeav follows the index, which is right": (
        ("pyav", compare.LOST_PICTURE, "zeros_avi.avi@3 zeros_avi.avi@7.25"),
        ("pyav", compare.LOST_SOUND, "zeros_avi.avi@3"),
        ("pyav", compare.STALE_PICTURE, "zeros_avi.avi@7.25"),
        ("pyav", compare.WRONG_SOUND, "zeros_avi.avi@7.25"),
        ("pyav", compare.FALSE_SOUND, "zeros_avi.avi@7.25"),
    ),
    "only pyav follows the index of an AVI behind a hole: refused, with a hint": (
        ("decord torchcodec", compare.REFUSED, "zeros_avi.avi@*"),
    ),
    "PyAV's newer FFmpeg ends a chained Ogg stream whose parameters change; ffmpeg 5 goes on": (
        ("pyav", compare.REFUSED, "joined_ogg_rate.ogg@6.25"),
        ("pyav", compare.LOST_SOUND, "joined_ogg_rate.ogg@3"),
        ("pyav", compare.FALSE_DAMAGE, "joined_ogv.ogv@3"),
    ),
    "AVI keeps no display times: ffmpeg 5 shows pictures with B-frames one or two late, caeav the right ones": (
        ("pyav", compare.WRONG_PICTURE, "avi_h264_bframes.avi@*"),
    ),
    "a clock that goes back loses a few packets at the seam": (
        ("pyav", compare.WRONG_SOUND, "joined_webm.webm@3"),
    ),
    "ffmpeg 5 counts sound on at the first rate, and pictures drift with it; caeav shows the right ones": (
        ("pyav", compare.WRONG_PICTURE, "joined_ts_rate.ts@6.25"),
    ),
    "ffmpeg 5 counts the step back twice, once for pictures and once for sound, and makes a hole of 5 s": (
        ("pyav", compare.WRONG_PICTURE, "joined_ts_clock_back.ts@3 joined_ts_clock_back.ts@6.25"),
        ("pyav", compare.FALSE_SOUND, "joined_ts_clock_back.ts@6.25"),
    ),
    "ffmpeg 5 takes the channels of QuickTime's film order for its own order; caeav follows the file": (
        ("pyav torchcodec", compare.LEVEL, "layout_film_*@*"),
    ),
    "the tag in the middle does not decode and is told as one error; nothing is lost": (
        ("pyav", compare.FALSE_DAMAGE, "joined_mp3_tags.mp3@3"),
    ),
    "decord begins at the second key frame here, or counts pictures wrongly: refused, with a hint": (
        (
            "decord",
            compare.REFUSED,
            "*.asf@* *.flv@* *.gif@* *.h264@* *.hevc@* *.ivf@* *.m1v@* *.m2ts@* *.mxf@* *.nut@* "
            "*.ogv@* *.rm@* *.vob@* *.wmv@* begun_*.mpg@* begun_*.ts@* clock_*.ts@* cut_*.mpg@* "
            "cut_*.ts@* edit_*.mov@* edit_list_cut.mp4@* fps_*.ts@* frozen_*.ts@* hole_*.mpg@* "
            "hole_*.ts@* latm_*@* layout_*.ts@* mkv_mpeg2_*@* mpg_*@* ogg_*@* open_*.ts@* "
            "picture_*.mpg@* picture_*.ts@* pixels_*.mpg@* pixels_*.ts@* seek_*.mpg@* seek_*.ts@* "
            "sound_*.mpg@* sound_*.ts@* ts_*@* vfr_*.ts@* zeros_*.mpg@* zeros_*.ts@*",
        ),
    ),
    "decord closes holes in the sound: found, and the clip's sound not called real": (
        ("decord", compare.LOST_SOUND, "sparse_*@*"),
    ),
    "decord counts sound that begins before 0 from its first sample on: found, and not called real": (
        ("decord", compare.LOST_SOUND, "dash_*@* edit_list_off.mp4@* fragments_*@*"),
    ),
    "decord gives H.264 in AVI one picture late: found and not called real": (
        ("decord", compare.LOST_PICTURE, "avi_h264_*@*"),
    ),
    "decord gives nothing of a file whose last fragment is cut off": (
        ("decord", compare.REFUSED, "cut_fragments.mp4@*"),
    ),
    "decord gives nothing of an MP4 from where its data are missing or do not decode": (
        (
            "decord",
            compare.LOST_PICTURE,
            "cut_mov_*@0 cut_mov_*@2 cut_mov_80.mov@* cut_mp4_*@2 cut_mp4_35.mp4@0 "
            "cut_mp4_80.mp4@* zeros_mp4.mp4@0",
        ),
        ("decord", compare.LOST_SOUND, "zeros_*@6.25 zeros_mp4.mp4@3"),
    ),
    "decord knows no AV1": (("decord", compare.LOST_PICTURE, "mp4_av1_*@* webm_av1_*@*"),),
    "decord knows no Speex": (("decord", compare.REFUSED, "sound_ogg_speex.ogg@*"),),
    "decord pads the rows of pictures 48 wide and cannot copy them then (wider ones work)": (
        ("decord", compare.REFUSED, "look_tall.mkv@* matrix_3_*@*"),
        (
            "decord",
            compare.LOST_PICTURE,
            "matrix_1.mp4@* matrix_1_*@* matrix_3.mp4@* matrix_6.mp4@* matrix_6_*@* matrix_7.mp4@*",
        ),
    ),
    "decord stops at a break: told, and not called real": (
        (
            "decord",
            compare.REFUSED,
            "begun_*.ac3@* hole_*.flac@* hole_*.opus@* hole_*@6.25 joined_mp3_tags.mp3@6.25",
        ),
        (
            "decord",
            compare.LOST_SOUND,
            "hole_mkv.mkv@0 hole_mkv.mkv@7.25 hole_sound_aac.aac@3 hole_sound_mp3.mp3@3 "
            "joined_mp3_tags.mp3@3 zeros_mkv.mkv@0 zeros_mkv.mkv@7.25",
        ),
    ),
    "decord takes the largest video stream, ffmpeg the one marked as default: refused, with a hint": (
        ("decord", compare.REFUSED, "streams_two_videos_small_*@*"),
    ),
    "decord wants a length in the header": (("decord", compare.LOST_PICTURE, "live_*@*"),),
    "only pyav follows a change of the sample rate: refused, with a hint": (
        ("decord torchcodec", compare.REFUSED, "joined_mp3_rate.mp3@3 joined_mp3_rate.mp3@6.25"),
    ),
    "only pyav goes on where the clock of joined files starts anew: refused, with a hint": (
        (
            "decord torchcodec",
            compare.REFUSED,
            "joined_*.flac@* joined_*.mpg@* joined_*.opus@* joined_*.ts@* joined_aac_*@* joined_mkv.mkv@3 "
            "joined_ogg_*.ogg@3 joined_ogg_*.ogg@6.25 joined_ogg_flac.ogg@0 joined_ogg_vorbis.ogg@0 joined_webm.webm@3",
        ),
    ),
    "the library loses palettes: told, and not called real": (
        ("decord torchcodec", compare.LOST_PICTURE, "avi_palette.avi@*"),
    ),
    "torchcodec cannot read a bare stream, which cannot be sought in": (
        ("torchcodec", compare.REFUSED, "*.h264@* *.hevc@*"),
    ),
    "torchcodec closes holes in the sound: found, and the clip's sound not called real": (
        ("torchcodec", compare.LOST_SOUND, "sparse_*@0 sparse_*@3"),
    ),
    "torchcodec counts sound that begins before 0 from its first sample on: found, and not called real": (
        (
            "torchcodec",
            compare.LOST_SOUND,
            "cut_fragments.mp4@0 cut_fragments.mp4@3 dash_*@0 edit_list_off.mp4@0 fragments_*@0",
        ),
    ),
    "torchcodec does not give the last picture": (
        ("torchcodec", compare.LOST_PICTURE, "avi_mpeg4_bframes.avi@6.25 fps_5_*@6.25"),
        ("torchcodec", compare.FALSE_DAMAGE, "sound_longer_wmv.wmv@3"),
    ),
    "behind a hole the first pictures lack those they are made from, and each version makes up others": (
        ("torchcodec", compare.WRONG_PICTURE, "hole_flv.flv@7.25 zeros_flv.flv@7.25"),
    ),
    "torchcodec gives nothing of a stretch in which anything does not decode": (
        (
            "torchcodec",
            compare.REFUSED,
            "begun_*.ac3@* cut_sound_aac.aac@3 cut_sound_aiff.aiff@3 cut_sound_flac.flac@3 "
            "cut_sound_wav.wav@3 hole_*.flac@* hole_*.opus@* hole_*@6.25 hole_flv.flv@3 "
            "hole_sound_*@3 zeros_flv.flv@3",
        ),
        ("torchcodec", compare.LOST_PICTURE, "zeros_mp4.mp4@0"),
        (
            "torchcodec",
            compare.LOST_SOUND,
            "cut_flv_35.flv@0 cut_flv_35.flv@2 cut_flv_80.flv@6.25 cut_mov_35.mov@2 "
            "cut_mp4_35.mp4@0 cut_mp4_35.mp4@2 cut_wmv_35.wmv@2 cut_wmv_80.wmv@6.25 "
            "hole_flv.flv@0 hole_flv.flv@7.25 hole_mkv.mkv@0 hole_mkv.mkv@7.25 hole_ogv.ogv@0 "
            "zeros_*.mp4@* zeros_flv.flv@0 zeros_flv.flv@7.25 zeros_mkv.mkv@0 zeros_mkv.mkv@7.25 "
            "zeros_ogv.ogv@0",
        ),
    ),
    "torchcodec seeks wrongly in MPEG streams: refused, with a hint": (
        (
            "torchcodec",
            compare.REFUSED,
            "*.m1v@* *.m2ts@* *.vob@* begun_*.mpg@* begun_*.ts@* clock_*.ts@* cut_*.mpg@* "
            "cut_*.ts@* fps_*.ts@* frozen_*.ts@* hole_*.mpg@* hole_*.ts@* latm_*@* layout_*.ts@* "
            "mpg_*@* open_*.ts@* picture_*.mpg@* picture_*.ts@* pixels_*.mpg@* pixels_*.ts@* "
            "seek_*.mpg@* seek_*.ts@* sound_*.mpg@* sound_*.ts@* ts_*@* vfr_*.ts@* zeros_*.mpg@* "
            "zeros_*.ts@*",
        ),
    ),
    "torchcodec loses packets of these codecs: refused, with a hint": (
        ("torchcodec", compare.REFUSED, "sound_caf_alac.caf@* sound_wav_adpcm.wav@*"),
        ("torchcodec", compare.LOST_SOUND, "mkv_utvideo_*@*"),
    ),
    "torchcodec stops at a break: told, and not called real": (
        (
            "torchcodec",
            compare.REFUSED,
            "joined_mp3_channels.mp3@3 joined_mp3_tags.mp3@3 joined_mp3_tags.mp3@6.25 joined_ogv.ogv@3",
        ),
        ("torchcodec", compare.LOST_PICTURE, "joined_ogv.ogv@0"),
    ),
}
"""Reason -> decoders, kind of difference, clips."""

KNOWN = tuple(Known(*line, why) for why, lines in _WHY.items() for line in lines)


def explained(row: Row, kind: str) -> str:
    """Why the row differs in `kind`; empty if no line explains it."""
    return next((known.why for known in KNOWN if known.fits(row, kind)), "")


def unexplained(row: Row) -> list[str]:
    """Kinds of difference that no line explains."""
    return [kind for kind in row.found if not explained(row, kind)]


def outdated(rows: Iterable[Row]) -> list[str]:
    """Lines of the table whose difference is gone: decoder, kind, clip."""
    version = ffmpeg_version()
    if version is None or version[0] != DRAWN_UP_WITH:
        return []
    return [
        f"{row.decoder}: {known.kind} of {row.case.file} from {row.start_s:g} s"
        for row in rows
        for known in KNOWN
        if known.covers(row) and known.kind not in row.found
    ]

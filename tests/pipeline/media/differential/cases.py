"""The cases of the differential test by family of media. A new kind of failing file gets a line here.

Most are 9 s of 64 x 48 pictures at 7 a second, decoded from the start and from 6.25 s (where a seek is worth it); the
last second runs past the media's end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import combinations

from making import Case, Part
from oracle import STRAIGHT

X264 = "libx264 -preset ultrafast -crf 20 -g 7 -bf 2 -pix_fmt yuv420p"
X264_LONG = "libx264 -preset veryfast -crf 20 -g 250 -bf 3 -pix_fmt yuv420p"
X264_SOME = X264_LONG.replace("-g 250", "-g 28")
X265 = "libx265 -preset ultrafast -crf 20 -x265-params log-level=none:keyint=14:pools=none:frame-threads=1"
MPEG4 = "mpeg4 -q:v 3 -g 7"
MPEG2 = "mpeg2video -q:v 3 -g 12 -bf 2"
MPEG1 = "mpeg1video -q:v 3 -g 12"
VP8 = "libvpx -b:v 300k -g 7 -deadline realtime -cpu-used 8"
VP9 = "libvpx-vp9 -b:v 300k -g 7 -deadline realtime -cpu-used 8"
AV1 = "libaom-av1 -b:v 300k -g 7 -usage realtime -cpu-used 8"
MJPEG = "mjpeg -q:v 3 -pix_fmt yuvj420p"
THEORA = "libtheora -q:v 8 -g 7"
WMV2 = "wmv2 -q:v 3 -g 7"
FLV1 = "flv -q:v 3 -g 7"
AAC = "aac -b:a 64k"
OPUS = "libopus -b:a 48k -ar 48000"
VORBIS = "libvorbis -q:a 3"
MP3 = "libmp3lame -b:a 64k"
MP2 = "mp2 -b:a 128k -ar 48000"
AC3 = "ac3 -b:a 128k -ar 48000"
PCM = "pcm_s16le"
FLAC = "flac"
WMA2 = "wmav2 -b:a 64k"
TV = "25"  # what MPEG-1 and 2 know

Bytes = Callable[[list[bytes]], bytes]
Cases = Iterator[Case]


def one(
    name: str,
    suffix: str,
    video: str | None = X264,
    audio: str | None = AAC,
    traits: tuple[str, ...] = (),
    **more: object,
) -> Case:
    """A case of a single part; `more` goes to `Case` if it has the field, otherwise to `Part`."""
    about = {k: more.pop(k) for k in list(more) if k in Case.__dataclass_fields__}
    return Case(name, suffix, (Part(video, audio, **more),), traits, **about)  # type: ignore[arg-type]


# -- containers and codecs


def codecs() -> Cases:
    """Each container with the codecs found in it."""
    for name, suffix, video, audio, more in (
        ("h264_aac", "mp4", X264, AAC, {}),
        ("h264_long_gop", "mp4", X264_LONG, AAC, {}),
        ("hevc_aac", "mp4", X265, AAC, {}),
        ("av1_opus", "mp4", AV1, OPUS, {}),
        ("vp9_opus", "mp4", VP9, OPUS, {}),
        ("mpeg4_mp3", "mp4", MPEG4, MP3, {}),
        ("h264_ac3", "mp4", X264, AC3, {}),
        ("h264_alac", "mp4", X264, "alac", {}),
        ("h264_flac", "mp4", X264, FLAC + " -strict -2", {}),
        ("h264_10bit", "mp4", "libx264 -preset ultrafast -crf 20 -g 7 -pix_fmt yuv420p10le", AAC, {}),
        ("h264_444", "mp4", "libx264 -preset ultrafast -crf 20 -g 7 -pix_fmt yuv444p", AAC, {}),
        ("h264_pcm", "mov", X264, PCM, {}),
        ("prores_pcm24", "mov", "prores_ks -profile:v 0 -pix_fmt yuv422p10le", "pcm_s24le", {}),
        ("mjpeg_pcm_be", "mov", MJPEG, "pcm_s16be", {}),
        ("qtrle_ima", "mov", "qtrle", "adpcm_ima_qt -ar 22050", {}),
        ("png_float", "mov", "png", "pcm_f32le", {}),
        ("cinepak_alaw", "mov", "cinepak", "pcm_alaw", {}),
        ("h264_aac", "mkv", X264, AAC, {}),
        ("h264_long_gop", "mkv", X264_LONG, AAC, {}),
        ("hevc_opus", "mkv", X265, OPUS, {}),
        ("ffv1_flac", "mkv", "ffv1", FLAC, {}),
        ("mpeg4_mp3", "mkv", MPEG4, MP3, {}),
        ("mpeg2_ac3", "mkv", MPEG2, AC3, {"fps": TV}),
        ("theora_vorbis", "mkv", THEORA, VORBIS, {}),
        ("h264_eac3", "mkv", X264, "eac3 -b:a 128k -ar 48000", {}),
        ("h264_dts", "mkv", X264, "dca -strict -2 -b:a 320k -ar 48000", {}),
        ("h264_truehd", "mkv", X264, "truehd -strict -2 -ar 48000 -ac 2", {}),
        ("utvideo_wavpack", "mkv", "utvideo", "wavpack", {}),
        ("huffyuv_tta", "mkv", "huffyuv", "tta", {}),
        ("mjpeg_pcm", "mkv", MJPEG, PCM, {}),
        ("vp8_vorbis", "webm", VP8, VORBIS, {}),
        ("vp9_opus", "webm", VP9, OPUS, {}),
        ("av1_opus", "webm", AV1, OPUS, {}),
        ("mpeg4_mp3", "avi", MPEG4, MP3, {}),
        ("mpeg4_bframes", "avi", MPEG4 + " -bf 2", MP3, {}),
        ("h264_pcm", "avi", "libx264 -preset ultrafast -crf 20 -g 7 -bf 0 -pix_fmt yuv420p", PCM, {}),
        ("h264_bframes", "avi", X264, MP3, {}),
        ("mjpeg_pcm", "avi", MJPEG, PCM, {}),
        ("msmpeg4_adpcm", "avi", "msmpeg4 -q:v 3 -g 7", "adpcm_ms", {}),
        ("msmpeg4v2_ima", "avi", "msmpeg4v2 -q:v 3 -g 7", "adpcm_ima_wav", {}),
        ("huffyuv_mulaw", "avi", "huffyuv", "pcm_mulaw", {}),
        ("msvideo1_u8", "avi", "msvideo1", "pcm_u8", {}),
        ("ffv1_ac3", "avi", "ffv1", AC3, {}),
        (
            "palette",
            "avi",
            "rawvideo -pix_fmt pal8",
            PCM,
            {"vf": "split[a][b];[a]palettegen[p];[b][p]paletteuse"},
        ),
        ("zmbv", "avi", "zmbv", PCM, {}),
        ("h264_aac", "flv", X264, AAC, {}),
        ("flv1_mp3", "flv", FLV1, MP3 + " -ar 22050", {}),
        ("flashsv_nelly", "flv", "flashsv", "nellymoser -ar 16000", {}),
        ("h264_speex", "flv", X264, "libspeex -ar 16000 -b:a 24k", {}),
        ("h264_aac", "ts", X264, AAC, {}),
        ("h264_long_gop", "ts", X264_LONG, AAC, {}),
        ("hevc_aac", "ts", X265, AAC, {}),
        ("mpeg2_mp2", "ts", MPEG2, MP2, {"fps": TV}),
        ("h264_ac3", "m2ts", X264, AC3, {}),
        ("mpeg1_mp2", "mpg", MPEG1, MP2, {"fps": TV}),
        ("mpeg2_mp2", "mpg", MPEG2, MP2, {"fps": TV}),
        ("mpeg2_ac3", "vob", MPEG2, AC3, {"fps": TV}),
        ("theora_vorbis", "ogv", THEORA, VORBIS, {}),
        ("theora_opus", "ogg", THEORA, OPUS, {}),
        ("wmv2_wma2", "wmv", WMV2, WMA2, {}),
        ("wmv1_wma1", "asf", "wmv1 -q:v 3 -g 7", "wmav1 -b:a 64k", {}),
        ("msmpeg4_mp3", "asf", "msmpeg4 -q:v 3 -g 7", MP3, {}),
        ("mpeg4_aac", "3gp", MPEG4, AAC, {}),
        ("h263_aac", "3gp", "h263 -q:v 3 -g 7", AAC, {"size": "128x96", "fps": "15"}),
        ("mpeg4_aac", "3g2", MPEG4, AAC, {}),
        ("rv20_ac3", "rm", "rv20 -q:v 3 -g 7", AC3, {"size": "128x96"}),
        ("ffv1_pcm", "nut", "ffv1", PCM, {}),
        ("mpeg2_pcm", "mxf", MPEG2, "pcm_s16le -ar 48000", {"fps": TV}),
        ("gif", "gif", "gif", None, {}),
        ("h264", "h264", X264, None, {"fps": TV}),
        ("hevc", "hevc", X265, None, {"fps": TV}),
        ("mpeg4", "m4v", MPEG4, None, {"fps": TV}),
        ("mpeg1", "m1v", MPEG1, None, {"fps": TV}),
        ("vp8", "ivf", VP8, None, {}),
    ):
        yield one(f"{suffix}_{name}", suffix, video, audio, **more)


def sounds() -> Cases:
    """Files of sound alone."""
    for name, suffix, audio in (
        ("s16", "wav", PCM),
        ("s24", "wav", "pcm_s24le"),
        ("u8", "wav", "pcm_u8"),
        ("float", "wav", "pcm_f32le"),
        ("alaw", "wav", "pcm_alaw"),
        ("adpcm", "wav", "adpcm_ms"),
        ("g726", "wav", "g726 -ar 8000 -b:a 32k"),
        ("gsm", "wav", "libgsm_ms -ar 8000"),
        ("s32", "w64", "pcm_s32le"),
        ("flac", "flac", FLAC),
        ("mp3", "mp3", MP3),
        ("mp3_vbr", "mp3", "libmp3lame -q:a 5"),
        ("mp2", "mp2", MP2),
        ("aac", "m4a", AAC),
        ("alac", "m4a", "alac"),
        ("aac", "aac", AAC),
        ("opus", "opus", OPUS),
        ("vorbis", "ogg", VORBIS),
        ("vorbis", "oga", VORBIS),
        ("flac", "ogg", FLAC),
        ("speex", "ogg", "libspeex -b:a 24k"),
        ("s16be", "aiff", "pcm_s16be"),
        ("alac", "caf", "alac"),
        ("pcm", "caf", "pcm_s16be"),
        ("s16be", "au", "pcm_s16be"),
        ("wavpack", "wv", "wavpack"),
        ("tta", "tta", "tta"),
        ("pcm", "voc", "pcm_u8 -ar 8000"),
        ("ac3", "ac3", AC3),
        ("eac3", "eac3", "eac3 -b:a 128k -ar 48000"),
        ("vorbis", "mka", VORBIS),
        ("wma2", "wma", WMA2),
    ):
        yield one(f"sound_{suffix}_{name}", suffix, None, audio, ("sound alone",))
    plain = "-write_xing 0 -id3v2_version 0"
    yield one("sound_mp3_plain", "mp3", None, "libmp3lame -q:a 5", ("sound alone",), out=plain)
    yield one("sound_wav_short", "wav", None, PCM, ("sound alone", "short"), seconds=0.45, starts_s=(0.0,))
    yield one("sound_mp3_short", "mp3", None, MP3, ("sound alone", "short"), seconds=0.3, starts_s=(0.0,))
    yield one(
        "sound_wav_one_and_a_bit", "wav", None, PCM, ("sound alone", "short"), seconds=1.3, starts_s=(0.0,)
    )


def _no_length_wav(parts: list[bytes]) -> bytes:
    """A wav as written to a pipe: its header holds no length."""
    data = bytearray(parts[0])
    for at in (4, data.find(b"data") + 4):
        data[at : at + 4] = b"\xff" * 4
    return bytes(data)


def _no_length_flac(parts: list[bytes]) -> bytes:
    data = bytearray(parts[0])
    data[21] &= 0xF0  # the last 36 bits of the rates and lengths: number of samples, 0 is unknown
    data[22:26] = bytes(4)
    return bytes(data)


def streamed() -> Cases:
    """Files that were never finished, or that start in the middle: without a length or a beginning."""
    alone = ("sound alone", "streamed")
    yield one("streamed_wav", "wav", None, PCM, alone, change=_no_length_wav)
    yield one("streamed_flac", "flac", None, FLAC, alone, change=_no_length_flac)
    for suffix, video, audio in (
        ("ts", X264, AAC),
        ("m2ts", X264, AC3),
        ("mpg", MPEG2, MP2),
        ("m1v", MPEG1, None),
        ("mp3", None, MP3),
        ("aac", None, AAC),
        ("ac3", None, AC3),
        ("ogg", None, VORBIS),
    ):
        fps = TV if suffix in ("mpg", "m1v") else "7"
        more = {"fps": fps, "damaged": True, "seconds": 12, "starts_s": (0.0, 3.0, 6.25)}
        yield one(
            f"begun_late_{suffix}", suffix, video, audio, ("streamed",), change=taken_out(0.0, 0.143), **more
        )


# -- channels and rates


LAYOUTS = {
    "stereo": "FL=c0|FR=c0",
    "2.1": "FL=c0|FR=c0|LFE=0.5*c0",
    "3.0": "FL=c0|FR=c0|FC=0.5*c0",
    "quad": "FL=c0|FR=c0|BL=0.5*c0|BR=0.5*c0",
    "5.0": "FL=c0|FR=0.5*c0|FC=c0|BL=0.2*c0|BR=0.2*c0",
    "5.1": "FL=c0|FR=0.5*c0|FC=c0|LFE=c0|BL=0.2*c0|BR=0.2*c0",
    "5.1(side)": "FL=c0|FR=0.5*c0|FC=c0|LFE=c0|SL=0.2*c0|SR=0.2*c0",
    "6.1": "FL=c0|FR=c0|FC=c0|LFE=0*c0|BC=c0|SL=0.2*c0|SR=c0",
    "7.1": "FL=c0|FR=c0|FC=c0|LFE=0*c0|BL=c0|BR=c0|SL=0.2*c0|SR=c0",
}


def layouts() -> Cases:
    """Channel layouts in the codecs that support them, planar and packed; channels that cancel or are silent."""
    short = {"seconds": 4.0, "starts_s": (0.0,)}
    for layout, suffix, video, audio in (
        ("stereo", "mp4", X264, AAC),
        ("stereo", "wav", None, PCM),
        ("2.1", "flac", None, FLAC),
        ("3.0", "m4a", None, AAC),
        ("quad", "wav", None, PCM),
        ("quad", "ogg", None, VORBIS),
        ("5.0", "mkv", X264, AC3),
        ("5.1", "mp4", X264, AAC + " -ar 48000"),
        ("5.1", "mkv", X264, "libopus -b:a 192k -mapping_family 1 -ar 48000"),
        ("5.1", "mov", X264, PCM),
        ("5.1", "wav", None, PCM),
        ("5.1", "ogg", None, VORBIS),
        ("5.1(side)", "flac", None, FLAC),
        ("5.1(side)", "mkv", X264, AC3),
        ("5.1(side)", "ts", X264, "ac3 -b:a 192k -ar 48000"),
        ("6.1", "wav", None, PCM),
        ("7.1", "mp4", X264, "aac -b:a 256k"),
        ("7.1", "webm", VP8, "libopus -b:a 256k -mapping_family 1 -ar 48000"),
        ("7.1", "mkv", X264, FLAC),
        ("7.1", "ogg", None, VORBIS),
        ("7.1", "wav", None, "pcm_s24le"),
    ):
        codec = audio.split()[0]
        name = f"layout_{layout.replace('(', '_').rstrip(')')}_{suffix}_{codec}"
        mix = f"pan={layout}|{LAYOUTS[layout]}"
        yield one(name, suffix, video, audio, ("layout",), af=mix, **short)
    for name, mix in (
        ("opposite", "pan=stereo|c0=c0|c1=-1*c0"),
        ("silent", "pan=stereo|c0=0*c0|c1=0*c0"),
    ):
        yield one(f"layout_{name}", "wav", None, PCM, ("layout", "silent"), af=mix, **short)
    for name, mix in (
        ("left_only", "pan=stereo|c0=c0|c1=0*c0"),
        ("right_only", "pan=stereo|c0=0*c0|c1=c0"),
        ("nearly_opposite", "pan=stereo|c0=c0|c1=-0.9*c0"),
    ):
        yield one(f"layout_{name}", "mp4", X264, AAC, ("layout",), af=mix, **short)
    many = "pan=16c|" + "|".join(f"c{n}={'c0' if n < 3 else '0.1*c0'}" for n in range(16))
    yield one("layout_16_wav", "wav", None, PCM, ("layout", "unnamed channels"), af=many, **short)
    yield one("layout_4_unnamed_wav", "wav", None, PCM, ("layout", "unnamed channels"),
              af="pan=4c|c0=c0|c1=c0|c2=0.1*c0|c3=0.1*c0", **short)  # fmt: skip
    for tag, channels, name in ((123 << 16 | 6, "5.1", "film_order"), (126 << 16 | 6, "5.1", "mpeg_order")):
        yield one(f"layout_{name}_mov", "mov", X264, PCM, ("layout", "channel order"),
                  af=f"pan={channels}|{LAYOUTS[channels]}", change=_channel_tag(tag), **short)  # fmt: skip


def _channel_tag(tag: int) -> Bytes:
    """A QuickTime file whose channel order differs from FFmpeg's."""

    def change(parts: list[bytes]) -> bytes:
        data = bytearray(parts[0])
        at = data.find(b"chan")
        data[at + 8 : at + 16] = struct.pack(">II", tag, 0)
        return bytes(data)

    return change


def rates() -> Cases:
    """Sample rates, including those at which a codec changes its frame size."""
    for rate, suffix, audio in (
        (8000, "wav", PCM),
        (8000, "mp3", MP3.replace("64k", "24k")),
        (11025, "wav", "pcm_u8"),
        (11025, "m4a", "aac -b:a 32k"),
        (22050, "mp3", MP3),
        (24000, "ogg", VORBIS),
        (32000, "mp3", MP3),
        (44100, "mp4", AAC),
        (44100, "mkv", VORBIS),
        (44100, "flv", MP3),
        (48000, "flac", FLAC),
        (96000, "flac", FLAC),
        (96000, "m4a", AAC),
        (192000, "wav", "pcm_s32le"),
    ):
        video = X264 if suffix in ("mp4", "mkv", "flv") else None
        yield one(f"rate_{rate}_{suffix}", suffix, video, f"{audio} -ar {rate}", ("rate",))


# -- pictures


def pictures() -> Cases:
    """Frame rates, pictures at uneven times, pixels that are not square, sizes and colours."""
    for fps, suffix, video in (
        ("1", "mp4", X264),
        ("1/2", "mkv", X264),
        ("1/3", "avi", MPEG4),
        ("5", "flv", X264),
        ("15", "webm", VP8),
        ("24000/1001", "mp4", X264),
        ("30000/1001", "mkv", X264),
        ("30000/1001", "mov", MJPEG),
        ("60", "mp4", X264),
        ("50", "ts", X264),
    ):
        name = f"fps_{fps.replace('/', '_')}_{suffix}"
        audio = PCM if suffix in ("mov", "avi") else VORBIS if suffix == "webm" else AAC
        yield one(name, suffix, video, audio, ("frame rate",), fps=fps)
    uneven = "select='not(eq(mod(n,7),3)+eq(mod(n,7),4)+eq(mod(n,5),2))'"
    for suffix, video, audio in (
        ("mp4", X264, AAC),
        ("mkv", X264, AAC),
        ("webm", VP9, OPUS),
        ("flv", X264, AAC),
        ("ts", X264, AAC),
        ("wmv", WMV2, WMA2),
        ("nut", "ffv1", PCM),
    ):
        yield one(
            f"vfr_{suffix}", suffix, video, audio, ("uneven",), vf=uneven, fps="15", out="-fps_mode vfr"
        )
    hole = "select='not(between(t,1.1,4.9))'"
    for suffix, video in (("mp4", X264), ("mkv", X264), ("ts", X264)):
        yield one(f"frozen_{suffix}", suffix, video, AAC, ("uneven", "frozen"), vf=hole, out="-fps_mode vfr")
    yield one("frozen_gif", "gif", "gif", None, ("uneven", "frozen"), vf=hole, out="-fps_mode vfr")
    for suffix, video, audio in (
        ("mp4", X264, AAC),
        ("mkv", X264, AAC),
        ("avi", MPEG4, MP3),
        ("webm", VP8, VORBIS),
        ("ts", MPEG2, MP2),
        ("mpg", MPEG1, MP2),
        ("ogv", THEORA, VORBIS),
    ):
        ratio = "4/3" if suffix != "ts" else "64/27"
        fps = TV if suffix in ("ts", "mpg") else "7"
        filters = f"setsar={ratio}" if suffix not in ("ts", "mpg") else "setdar=16/9"
        yield one(f"pixels_{suffix}", suffix, video, audio, ("pixels",), vf=filters, fps=fps)
    for name, video, size in (
        ("odd_size", "ffv1 -pix_fmt bgr0", "63x47"),
        ("odd_size_444", "libx264 -preset ultrafast -crf 20 -pix_fmt yuv444p", "61x49"),
        ("grey", "ffv1 -pix_fmt gray", ""),
        ("grey10", "ffv1 -pix_fmt gray10le", ""),
        ("alpha", "ffv1 -pix_fmt yuva420p", ""),
        ("rgb", "libx264rgb -preset ultrafast -crf 20 -g 7", ""),
        ("full_range", "libx264 -preset ultrafast -crf 20 -pix_fmt yuvj420p", ""),
        ("bt709", X264 + " -colorspace bt709 -color_primaries bt709 -color_trc bt709", ""),
        ("bt2020", X264 + " -colorspace bt2020nc -color_primaries bt2020 -color_trc smpte2084", ""),
        ("tall", X264, "48x160"),
    ):
        vf = f"scale=out_color_matrix={name}" if name in ("bt709", "bt2020") else ""
        yield one(f"look_{name}", "mkv", video, None, ("look",), size=size, vf=vf)
    yield one("look_interlaced", "mp4", X264 + " -flags +ilme+ildct", AAC, ("look",))
    yield one("look_cropped", "mp4", X264, AAC, ("look",), size="62x46")


MATRICES = {
    0: (1, 0, 0, 1),
    1: (0, -1, 1, 0),
    2: (-1, 0, 0, -1),
    3: (0, 1, -1, 0),
    4: (-1, 0, 0, 1),
    5: (1, 0, 0, -1),
    6: (0, 1, 1, 0),
    7: (0, -1, -1, 0),
}
"""The display matrix (a, b, c, d) of each of `compare.TURNS`."""


def _matrix(turn: int) -> Bytes:
    def change(parts: list[bytes]) -> bytes:
        a, b, c, d = (each << 16 for each in MATRICES[turn])
        data = bytearray(parts[0])
        at = data.find(b"tkhd") + 44
        width, height = 64 << 16, 48 << 16
        right = width if min(a, c) < 0 else 0
        below = height if min(b, d) < 0 else 0
        data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, right, below, 1 << 30)
        return bytes(data)

    return change


def turned() -> Cases:
    """All eight display matrices, with square and other pixels; B-frames and a seek."""
    for turn in range(8):
        yield one(f"matrix_{turn}", "mp4", X264, AAC, ("matrix",), change=_matrix(turn), turn=turn)
    for turn in (1, 4, 6):
        yield one(
            f"matrix_{turn}_mov",
            "mov",
            MJPEG,
            PCM,
            ("matrix",),
            change=_matrix(turn),
            turn=turn,
        )
    for turn in (3, 5):
        yield one(f"matrix_{turn}_pixels", "mp4", X264, None, ("matrix", "pixels"), vf="setsar=2/1",
                  change=_matrix(turn), turn=turn)  # fmt: skip


# -- time


def times() -> Cases:
    """Sound and pictures of unequal length, late starts, container clocks, edit lists, fragments, no index."""
    both = (
        ("mp4", X264, AAC),
        ("mkv", X264, AAC),
        ("webm", VP8, VORBIS),
        ("avi", MPEG4, MP3),
        ("flv", X264, AAC),
        ("ts", X264, AAC),
        ("wmv", WMV2, WMA2),
        ("mpg", MPEG2, MP2),
        ("ogv", THEORA, VORBIS),
    )
    for suffix, video, audio in both:
        fps = TV if suffix == "mpg" else "7"
        here = {"fps": fps, "starts_s": (0.0, 3.0, 6.25)}
        yield one(
            f"sound_longer_{suffix}",
            suffix,
            video,
            audio,
            ("sound longer",),
            video_s=4.0,
            seconds=26.0,
            **here,
        )
        yield one(f"sound_shorter_{suffix}", suffix, video, audio, ("sound shorter",), audio_s=4.0, **here)
    for suffix, video, audio in both:
        fps = TV if suffix == "mpg" else "7"
        late = "-itsoffset 1.7"
        if suffix != "avi":  # it cannot say so
            yield one(
                f"sound_late_{suffix}", suffix, video, audio, ("sound late",), before_audio=late, fps=fps
            )
        yield one(
            f"picture_late_{suffix}", suffix, video, audio, ("picture late",), before_video=late, fps=fps
        )
    for suffix, video, audio in (
        ("mp4", X264, AAC),
        ("mkv", X264, AAC),
        ("ts", X264, AAC),
        ("flv", X264, AAC),
        ("webm", VP9, OPUS),
    ):
        yield one(f"clock_{suffix}", suffix, video, audio, ("clock",), out="-output_ts_offset 100")
    yield one("clock_wraps", "ts", X264, AAC, ("clock", "wrap"), out="-output_ts_offset 95440")
    yield one("edit_list_cut", "mp4", X264_SOME, AAC, ("edit list",), seconds=14,
              remux="-ss 2.6|-c copy")  # fmt: skip
    yield one("edit_list_cut_mov", "mov", X264_SOME, PCM, ("edit list",), seconds=14,
              remux="-ss 2.6|-c copy")  # fmt: skip
    yield one("edit_list_off", "mp4", X264, AAC, ("edit list",), out="-use_editlist 0")
    yield one("edit_list_negative", "mp4", X264, AAC, ("edit list",), before_audio="-itsoffset 0.4",
              out="-avoid_negative_ts disabled -movflags +negative_cts_offsets")  # fmt: skip
    yield one("cut_copy_mkv", "mkv", X264_SOME, AAC, ("cut by copy",), seconds=14,
              remux="-ss 2.6|-c copy")  # fmt: skip
    yield one("cut_copy_ts", "ts", X264_SOME, AAC, ("cut by copy",), seconds=14,
              remux="-ss 2.6|-c copy")  # fmt: skip
    for name, suffix, video, audio, out in (
        ("fragments", "mp4", X264, AAC, "-movflags +frag_keyframe+empty_moov"),
        ("fragments_bframes", "mp4", X264_SOME, AAC, "-movflags +frag_keyframe+empty_moov+default_base_moof"),
        ("dash", "mp4", X264, AAC, "-movflags +dash+frag_keyframe+empty_moov"),
        ("live", "mkv", X264, AAC, "-live 1"),
        ("live", "webm", VP8, VORBIS, "-live 1"),
        ("index_first", "mkv", X264, AAC, "-reserve_index_space 4096"),
        ("faststart", "mp4", X264, AAC, "-movflags +faststart"),
        ("no_duration", "flv", X264, AAC, "-flvflags no_duration_filesize"),
        ("vbr", "m2ts", X264, AAC, "-mpegts_m2ts_mode 1"),
        ("latm", "ts", X264, AAC, "-mpegts_flags latm"),
        ("timecode", "mov", MJPEG, PCM, "-timecode 01:00:00:00"),
    ):  # fmt: skip
        yield one(f"{name}_{suffix}", suffix, video, audio, ("how written",), out=out)
    yield one("open_gop", "mp4", "libx264 -preset veryfast -crf 20 -g 14 -bf 3 -x264-params open-gop=1", AAC, ("seek",),
              seconds=14, starts_s=(6.25, 10.25))  # fmt: skip
    yield one("open_gop", "ts", "libx264 -preset veryfast -crf 20 -g 14 -bf 3 -x264-params open-gop=1", AAC, ("seek",),
              seconds=14, starts_s=(6.25, 10.25))  # fmt: skip
    for suffix, video, audio in both:
        fps = TV if suffix == "mpg" else "7"
        yield one(
            f"seek_{suffix}",
            suffix,
            video,
            audio,
            ("seek",),
            seconds=20,
            fps=fps,
            starts_s=(5.73, 12.4, 16.25),
        )
    yield one("intra_refresh", "mkv", "libx264 -preset veryfast -crf 20 -g 500 -intra-refresh 1", AAC, ("seek",),
              seconds=20, starts_s=(12.25,))  # fmt: skip
    yield one("sparse_sound", "mkv", X264, OPUS, ("sound with holes",), af="aselect='not(between(t,2,4.5))'",
              starts_s=(0.0, 3.0, 6.25))  # fmt: skip
    yield one("sparse_sound", "mp4", X264, AAC, ("sound with holes",), af="aselect='not(between(t,2,4.5))'",
              starts_s=(0.0, 3.0, 6.25))  # fmt: skip


# -- damage and joins


def cut_at(share: float) -> Bytes:
    """The file's first part only."""
    return lambda parts: parts[0][: int(len(parts[0]) * share)]


def cuts() -> Cases:
    """Files cut off: the header promises more than there is."""
    for suffix, video, audio, out in (
        ("mp4", X264, AAC, "-movflags +faststart"),
        ("mov", MJPEG, PCM, "-movflags +faststart"),
        ("mkv", X264, AAC, ""),
        ("webm", VP9, OPUS, ""),
        ("avi", MPEG4, MP3, ""),
        ("flv", X264, AAC, ""),
        ("ts", X264, AAC, ""),
        ("mpg", MPEG2, MP2, ""),
        ("ogv", THEORA, VORBIS, ""),
        ("wmv", WMV2, WMA2, ""),
    ):
        fps = TV if suffix == "mpg" else "7"
        for percent in (35, 80):
            yield one(f"cut_{suffix}_{percent}", suffix, video, audio, ("cut off",), out=out, fps=fps, damaged=True,
                      change=cut_at(percent / 100), starts_s=(0.0, 2.0, 6.25))  # fmt: skip
    yield one("cut_mp4_no_index", "mp4", X264, AAC, ("cut off",), damaged=True, change=cut_at(0.6))
    yield one("cut_fragments", "mp4", X264, AAC, ("cut off",), damaged=True, change=cut_at(0.5),
              out="-movflags +frag_keyframe+empty_moov", starts_s=(0.0, 3.0, 6.25))  # fmt: skip
    for suffix, audio in (
        ("wav", PCM),
        ("flac", FLAC),
        ("mp3", MP3),
        ("opus", OPUS),
        ("aac", AAC),
        ("aiff", "pcm_s16be"),
    ):
        yield one(f"cut_sound_{suffix}", suffix, None, audio, ("cut off", "sound alone"), damaged=True,
                  change=cut_at(0.5), starts_s=(0.0, 3.0, 6.25))  # fmt: skip


def joined(
    name: str, suffix: str, video: str | None, audio: str | None, *more: Part, **about: object
) -> Case:
    """The bytes of two files in sequence; the source of the second starts at 30 s."""
    fps = str(about.pop("fps", "7"))
    second = more[0] if more else Part(video, audio, seconds=5.0, from_s=30.0, fps=fps)
    first = Part(video, audio, seconds=5.0, fps=fps, out=second.out)
    starts = about.pop("starts_s", (0.0, 3.0, 6.25))
    traits = ("joined", STRAIGHT) if name.endswith("_rate") or suffix == "flac" else ("joined",)
    return Case(f"joined_{name}", suffix, (first, second), traits, starts, **about)  # type: ignore[arg-type]


def joins() -> Cases:
    """Files joined as `cat` does, also with other rates, sizes and channels."""
    yield joined("ts", "ts", X264, AAC)
    yield joined("ts_mpeg2", "ts", MPEG2, MP2, fps=TV)
    yield joined("ts_size", "ts", X264, AAC, Part(X264, AAC, seconds=5, from_s=30, size="96x72"))
    yield joined("ts_rate", "ts", X264, AAC, Part(X264, AAC + " -ar 32000", seconds=5, from_s=30))
    yield joined(
        "ts_clock_ahead", "ts", X264, AAC, Part(X264, AAC, seconds=5, from_s=30, out="-output_ts_offset 500")
    )
    yield joined(
        "ts_clock_back", "ts", X264, AAC, Part(X264, AAC, seconds=5, from_s=30, before_video="-itsoffset 0.5")
    )
    yield joined("mpg", "mpg", MPEG2, MP2, fps=TV)
    yield joined("flac", "flac", None, FLAC)
    # nothing after the change decodes, not in ffmpeg either
    yield joined(
        "flac_rate", "flac", None, FLAC, Part(None, FLAC + " -ar 22050", seconds=5, from_s=30), damaged=True
    )
    yield joined("ogg_vorbis", "ogg", None, VORBIS)
    yield joined("ogg_opus", "opus", None, OPUS)
    yield joined("ogg_flac", "ogg", None, FLAC)
    yield joined("ogg_rate", "ogg", None, VORBIS, Part(None, VORBIS + " -ar 22050", seconds=5, from_s=30))
    yield joined("ogv", "ogv", THEORA, VORBIS)
    plain = "-write_xing 0 -id3v2_version 0"
    yield joined("mp3", "mp3", None, MP3, Part(None, MP3, seconds=5, from_s=30, out=plain))
    yield joined("mp3_tags", "mp3", None, MP3)
    yield joined("mp3_rate", "mp3", None, MP3 + " -ar 22050",
                 Part(None, MP3 + " -ar 24000", seconds=5, from_s=30, out=plain))  # fmt: skip
    yield joined(
        "mp3_channels", "mp3", None, MP3, Part(None, MP3 + " -ac 2", seconds=5, from_s=30, out=plain)
    )
    yield joined("aac", "aac", None, AAC)
    yield joined(
        "aac_rate", "aac", None, AAC + " -ar 22050", Part(None, AAC + " -ar 32000", seconds=5, from_s=30)
    )
    yield joined("ac3", "ac3", None, AC3)
    yield joined("wav", "wav", None, PCM)
    yield joined("mp4", "mp4", X264, AAC)
    yield joined("mkv", "mkv", X264, AAC, damaged=True)  # ffmpeg, too, keeps the first part only
    yield joined("webm", "webm", VP8, VORBIS, damaged=True)
    yield joined("flv", "flv", X264, AAC)
    yield joined("avi", "avi", MPEG4, MP3)


def flipped(first: float, last: float, every: int) -> Bytes:
    """A byte in `every` inverted between two shares of the file."""

    def change(parts: list[bytes]) -> bytes:
        data = bytearray(parts[0])
        for at in range(int(len(data) * first), int(len(data) * last), every):
            data[at] ^= 0xFF
        return bytes(data)

    return change


def zeroed(first: float, last: float) -> Bytes:
    """A part of the file is overwritten by zeros."""

    def change(parts: list[bytes]) -> bytes:
        data = bytearray(parts[0])
        begin, end = int(len(data) * first), int(len(data) * last)
        data[begin:end] = bytes(end - begin)
        return bytes(data)

    return change


def taken_out(first: float, last: float) -> Bytes:
    """A part of the file is missing."""
    return lambda parts: parts[0][: int(len(parts[0]) * first)] + parts[0][int(len(parts[0]) * last) :]


def damage() -> Cases:
    """Bytes lost in the middle of a file, and files that cannot be played at all."""
    for suffix, video, audio in (
        ("mkv", X264, AAC),
        ("ts", X264, AAC),
        ("flv", X264, AAC),
        ("avi", MPEG4, MP3),
        ("ogv", THEORA, VORBIS),
        ("mpg", MPEG2, MP2),
    ):
        fps = TV if suffix == "mpg" else "7"
        yield one(f"hole_{suffix}", suffix, video, audio, ("hole",), damaged=True, fps=fps, seconds=12,
                  change=taken_out(0.3, 0.6), starts_s=(0.0, 3.0, 7.25))  # fmt: skip
        yield one(f"zeros_{suffix}", suffix, video, audio, ("hole",), damaged=True, fps=fps, seconds=12,
                  change=zeroed(0.3, 0.6), starts_s=(0.0, 3.0, 7.25))  # fmt: skip
    yield one("zeros_mp4", "mp4", X264, AAC, ("hole",), damaged=True, change=zeroed(0.3, 0.5),
              out="-movflags +faststart", starts_s=(0.0, 3.0, 6.25))  # fmt: skip
    for suffix, audio in (("mp3", MP3), ("flac", FLAC), ("opus", OPUS), ("aac", AAC)):
        yield one(f"hole_sound_{suffix}", suffix, None, audio, ("hole", "sound alone"), damaged=True, seconds=12,
                  change=taken_out(0.3, 0.6), starts_s=(0.0, 3.0, 6.25))  # fmt: skip
    key = "-encryption_scheme cenc-aes-ctr -encryption_key 76a6c65c5ea762046bd749a2e632ccbb"
    yield one("encrypted", "mp4", X264, AAC, ("encrypted",), damaged=True, real=False,
              out=f"{key} -encryption_kid a7e61c373e219033c21091fa607bf3b8")  # fmt: skip


def streams() -> Cases:
    """More than one stream of a kind, cover art, subtitles, data."""
    other = Part("mpeg4 -q:v 3", "libmp3lame -b:a 32k", from_s=20.0, size="32x24")
    for name, suffix, maps in (
        ("two_videos", "mkv", "-map 0:v -map 1:v -map 0:a -c copy"),
        ("two_videos_small_first", "mkv", "-map 1:v -map 0:v -map 0:a -c copy"),
        ("two_sounds", "mkv", "-map 0:v -map 0:a -map 1:a -c copy"),
        ("sound_first", "mkv", "-map 0:a -map 0:v -c copy"),
        ("two_sounds", "mp4", "-map 0:v -map 0:a -map 1:a -c copy"),
    ):
        parts = (Part(X264, AAC), other)
        yield Case(f"streams_{name}_{suffix}", suffix, parts, ("streams",), remux=f"|{maps}")
    cover = Part("png -frames:v 1", None, suffix="nut")
    for suffix, audio in (("mp3", MP3), ("flac", FLAC), ("m4a", AAC)):
        maps = "-map 0:a -map 1:v -c copy -disposition:v attached_pic"
        parts = (Part(None, audio, suffix="mkv"), cover)
        yield Case(f"cover_{suffix}", suffix, parts, ("cover",), remux=f"|{maps}")


FAMILIES: dict[str, Callable[[], Cases]] = {
    "containers and codecs": codecs,
    "sound alone": sounds,
    "without length or beginning": streamed,
    "channel layouts": layouts,
    "sample rates": rates,
    "frame rates, pixels, colours": pictures,
    "display matrices": turned,
    "starts, lengths, edit lists, seeks": times,
    "cut off": cuts,
    "joined": joins,
    "holes, encryption": damage,
    "several streams, covers": streams,
}


def all_cases() -> list[Case]:
    """Every case, in the order of the families."""
    return [case for family in FAMILIES.values() for case in family()]


RARE = 10  # a trait not yet covered counts as many pairs


def pairwise(cases: list[Case], most: int) -> list[Case]:
    """At most `most` cases that together cover as many pairs of container, codecs and traits as possible."""
    wanted = {case.file: set(combinations(sorted(case.values), 2)) | set(case.values) for case in cases}
    special = {case.file: set(case.traits) for case in cases}
    seen: set[object] = set()
    chosen: list[Case] = []
    while len(chosen) < most:
        best = max(
            cases, key=lambda case: len(wanted[case.file] - seen) + RARE * len(special[case.file] - seen)
        )
        if not wanted[best.file] - seen:
            break
        seen |= wanted[best.file]
        chosen.append(best)
    return chosen

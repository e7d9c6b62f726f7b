"""Findings: what readers and `check` report about a data set. Their codes, and the findings that follow from the rows.

A finding is never fatal. It is kept in the manifest's header, so that whoever uses the rows later can see what was odd
when they were made. Codes are stable, and each means one thing.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

from caeav.manifests.clip import SPLITS, Clip, Finding, Manifest, video_of

CODES = {
    "missing_media": "no media file where the clip's should be; extraction quarantines the clip",
    "id_in_two_splits": "clips of one video are in two splits, so scores on them are too good",
    "zero_length_event": "the event has no length: no second of the clip is an event second",
    "repeated_id": "one video id in several clips, which differ in their class",
    "dash_id": "ids that begin with '-' and look like options to command line tools",
    "several_events": "several rows of one video and class: one clip with several events",
    "duplicate_row": "the same row twice; used once",
    "damaged_row": "the row could not be read; skipped",
    "backwards_event": "the event ends before it starts; row skipped",
    "time_outside": "the event reaches beyond the clip; cut to it, or skipped where nothing is left",
    "no_split": "the row is in no split file; the clip has no split",
    "row_in_two_splits": "one clip is in several splits; test is taken before val, val before train",
    "not_annotated": "the row is in a split file but not in the annotations; taken from the split file",
    "split_row_differs": "split file and annotations give different times; the annotations' are taken",
    "empty_split": "the split file has no row",
    "repeated_label": "a label twice for one clip; used once",
    "unknown_label": "a label that is none of the data set's classes; left out",
    "orphan_event": "the event's file name is that of no clip in val or test; the official code never sees it either",
    "fractional_time": "an event's time has decimals; they are cut off, as in the official code",
    "overlapping_events": "events of one class overlap in one clip; their seconds count once",
    "weak_labels_differ": "the video-level labels are not the classes of the timed events",
    "nothing_heard": "no audible event in the clip, so its audio ground truth is empty",
    "nothing_seen": "no visible event in the clip, so its visual ground truth is empty",
    "decimal_times": "the times in the file name have decimals; its key has none",
    "unusual_name": "a file name of another form than usual; taken as it is",
    "no_masks": "the folder of ground-truth masks is not there; the clips can be decoded, not trained or scored",
    "missing_mask": "the clip's mask file is not there; that frame has no ground truth",
    "damaged_mask": "the mask file cannot be read; that frame has no ground truth",
    "empty_mask": "a mask without any object: the official metrics have separate rules for such frames",
    "soft_mask": "the mask has values between black and white; made 0 or 1 as by the official loader",
    "mask_size": "masks of several sizes in one data set",
    "missing_pictures": "a wav without its folder of images: the clip is decoded to sound and black frames",
    "short_source": "the clip reaches past the end of its 10 s video, so its last second may be missing",
    "raw_video": "a video instead of frames and wav: frames are taken at half of each second, masks belong to 15/16",
    "no_youtube_id": "the name holds no YouTube id, so it is unknown whether its video is in another split",
    "grouped_rows": "the list is sorted by class: without shuffling a batch has one class",
    "no_split_file": "the file of a split is not there; the split is empty",
    "video_in_two_splits": "questions about one video lie in two splits (questions are split, not videos)",
    "contradictory_answers": "one question with two answers; both are kept and counted, as in the official code",
    "repeated_number": "two different questions have one number; both are kept",
    "full_width_mark": "questions that end in a full-width question mark",
    "blank_at_end": "questions that end in a blank",
    "no_question_mark": "questions without a mark at their end: the official code cuts off a letter",
    "unseen_words": "words that no train question has",
    "unknown_class": "a name that is not in the data set's list of classes or answers; put after the others",
    "several_media": "several media files for one id; the first of mp4, mkv, webm, ... is taken",
    "skipped_files": "files whose extension is not one of media; left out",
    "unreadable_folder": "a folder or file could not be looked at; left out",
    "unreadable_name": "the file's name is not valid UTF-8; left out, rename it",
    "unlabelled_file": "the label file does not name this media file; its clip has no events and no split",
    "labels_read_as": "how the label file or the folders were read",
    "names_taken_for": "names that are not the files' paths; each was taken for the only file it can mean",
    "few_names_found": "half or more of the label file's rows name no media file; their clips are quarantined",
    "doubtful_times": "the label file's times can hardly be seconds",
    "past_the_end": "labels past the end of their media; clips there are quarantined when they are decoded",
    "clip_cut_in_two": "rows as long as a clip lie across two; clip_start_s, clip_end_s give each its own clip",
    "short_clip": "clips shorter than the data set's; taken with its length, and the rest counts as background",
    "named_by_id": "files named by the video's id alone, which may hold the clip or the whole video",
    "tail_left_out": "what a stride leaves over at the ends of files: less than half a clip, so it is no clip",
    "unknown_length": "the file's length could not be found out, so not all of it was cut into clips",
    "event_in_no_clip": "rows that touch no clip of this stride",
    "unmerged_streams": "video and audio in separate files, as yt-dlp leaves them: each is a clip without the other",
    "official_files_ignored": "the folder holds a data set's official files; read as plain media they are not used",
}

WARNINGS = (
    "few_names_found",
    "doubtful_times",
    "past_the_end",
    "names_taken_for",
    "labels_read_as",
    "named_by_id",
    "clip_cut_in_two",
    "short_clip",
    "unknown_length",
    "event_in_no_clip",
    "unmerged_streams",
)
"""Codes of what may make every number wrong; commands that compute something from a data set print them in full."""


def warning_lines(manifest: Manifest) -> list[str]:
    """The findings whose codes are in `WARNINGS`, in that order, one line each: what it means, where, the fact."""
    found = sorted((f for f in manifest.findings if f.code in WARNINGS), key=lambda f: WARNINGS.index(f.code))
    return [f"{CODES[f.code]} ({f.where}: {f.detail})" for f in found]


def finding(code: str, where: str, detail: str) -> Finding:
    """A `Finding` whose code is one of `CODES`; another code is a programming mistake (`ValueError`)."""
    if code not in CODES:
        raise ValueError(f"finding code {code!r} is not listed in CODES")
    return Finding(code, where, detail)


def leaks(clips: Iterable[Clip]) -> list[Finding]:
    """One `id_in_two_splits` for each video with clips in more than one of train, val and test."""
    return [
        finding("id_in_two_splits", name, "; ".join(f"{s}: {', '.join(by[s])}" for s in SPLITS if s in by))
        for name, by in _by_video(clips).items()
        if len(by) > 1
    ]


def shared_videos(clips: Iterable[Clip]) -> list[Finding]:
    """One `video_in_two_splits` for each pair of splits with questions about the same videos."""
    found = [(clip.key, question_splits(clip)) for clip in clips]
    findings = []
    for first, second in combinations(SPLITS, 2):
        keys = [key for key, splits in found if first in splits and second in splits]
        of_second = sum(second in splits for _, splits in found)
        if keys:
            detail = (
                f"{len(keys)} of the {of_second} videos of {second} are in {first} too, such as {keys[0]}"
            )
            findings.append(finding("video_in_two_splits", f"{first}, {second}", detail))
    return findings


def question_splits(clip: Clip) -> tuple[str, ...]:
    """The splits of a clip's questions, in the order of `SPLITS`; empty for a clip without questions."""
    named = {question["split"] for question in clip.extra.get("questions", ())}
    return tuple(split for split in SPLITS if split in named)


def leaked_keys(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Clips whose video is in another split too: key -> those other splits, in the order of `SPLITS`.

    Videos are compared by id (`video_of`), so two clips of one YouTube video are found whatever their keys. Where
    questions are split and not videos: the video's key -> all splits of its questions, if there are several.
    """
    leaked: dict[str, tuple[str, ...]] = {}
    for clip in manifest.clips:
        splits = question_splits(clip)
        if len(splits) > 1:
            leaked[clip.key] = splits
    for by in _by_video(manifest.clips).values():
        for split, keys in by.items():
            others = tuple(other for other in SPLITS if other in by and other != split)
            if others:
                leaked.update(dict.fromkeys(keys, others))
    return leaked


def _by_video(clips: Iterable[Clip]) -> dict[str, dict[str, list[str]]]:
    """Keys by video and split; clips without a split are left out."""
    keys: dict[str, dict[str, list[str]]] = {}
    for clip in clips:
        if clip.split:
            keys.setdefault(video_of(clip.media, clip.extra), {}).setdefault(clip.split, []).append(clip.key)
    return keys


def zero_length_events(clips: Iterable[Clip]) -> list[Finding]:
    """One `zero_length_event` for each event that ends where it starts."""
    return [
        finding(
            "zero_length_event", clip.key, f"{event.label!r} from {event.start_s:g} s to {event.end_s:g} s"
        )
        for clip in clips
        for event in clip.events
        if event.start_s == event.end_s
    ]

"""The world in LLP's layout: weak labels for train, events by modality for val and test.

    LLP_dataset/video/<id>.mp4                              media, named by the id alone
    AVVP_train.csv, AVVP_val_pd.csv, AVVP_test_pd.csv       <id>_<start>_<end> and the labels of the whole clip
    AVVP_eval_audio.csv, AVVP_eval_visual.csv               every stretch heard, every stretch seen; val and test mixed
    categories.txt, truth.jsonl                             as in AVE's layout, with the clip's `name`

A clip has a timeline as in AVE's layout, with sounds without their object and objects without their sound, and often a
second class that is seen and heard. Train's labels do not say which is which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.synthetic import oracle
from caeav.manifests.synthetic.layouts.base import write_lines, write_mp4, write_truth
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.scenario import AUDIO, VISUAL, Scenario, begin, clip_id, generator

SECOND_CLASS = 0.45
"""Share of clips with another class that is seen and heard."""
TOGETHER = 0.5
"""Share of these in which it is seen and heard at the same time."""
DECIMAL_EVERY = 40
"""As a few names of the real set, one in this many has decimals in its times."""
LISTS = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}


class _Llp:
    measure = "segment-level F, mean of audio, visual and audio-visual (Type@AV)"

    def plan(self, options: SyntheticOptions, index: int) -> Scenario:
        timeline, kind = begin(options, index)
        timeline.play(kind, options.distractors)
        if timeline.rng.random() < SECOND_CLASS and timeline.others:
            other, span = timeline.others.pop(), timeline.some_event(options.seconds)
            timeline.fill(VISUAL, other, *span)
            together = timeline.rng.random() < TOGETHER
            timeline.fill(AUDIO, other, *(span if together else timeline.some_event(options.seconds)))
        return timeline.scenario(index, clip_id(options, index), kind)

    def last_file(self, root: Path, scenario: Scenario, split: str) -> Path:
        return root / "LLP_dataset" / "video" / f"{scenario.clip_id}.mp4"

    def write_clip(self, root: Path, options: SyntheticOptions, scenario: Scenario, split: str) -> None:
        write_mp4(self.last_file(root, scenario, split), options, scenario, split)

    def write_lists(
        self, root: Path, options: SyntheticOptions, scenarios: Sequence[Scenario], splits: Sequence[str]
    ) -> None:
        names = options.llp_names()
        files = [file_name(options, s) for s in scenarios]
        for split, path in LISTS.items():
            rows = [
                f"{file}\t{','.join(names[c] for c in _labels(s))}"
                for file, s, where in zip(files, scenarios, splits, strict=True)
                if where == split
            ]
            write_lines(root / path, ["filename\tevent_labels", *rows])
        for track, path in (("heard", "AVVP_eval_audio.csv"), ("seen", "AVVP_eval_visual.csv")):
            rows = [
                f"{file}\t{start}\t{end}\t{names[cls]}"
                for file, s, where in zip(files, scenarios, splits, strict=True)
                if where != "train"
                for cls, start, end in stretches(getattr(s, track))
            ]
            write_lines(root / path, ["filename\tonset\toffset\tevent_labels", *rows])
        write_lines(root / "categories.txt", names)
        write_truth(root, options, scenarios, splits, files)

    def scores(self, options: SyntheticOptions, scenarios: Sequence[Scenario]) -> tuple[oracle.Score, ...]:
        seen, heard = (oracle.presence(scenarios, options.classes, track) for track in ("seen", "heard"))
        nothing = np.zeros_like(seen)

        def best(knows: str, guesses: dict[str, tuple[oracle.Mask, oracle.Mask]]) -> oracle.Score:
            tried = [
                oracle.Score(knows, type_at_av(audio, visual, heard, seen), rule)
                for rule, (audio, visual) in guesses.items()
            ]
            return max(tried, key=lambda score: score.accuracy)

        return (
            best("nothing", {"no event": (nothing, nothing)}),
            best(
                "visual alone", {"what is seen is heard": (seen, seen), "nothing is heard": (nothing, seen)}
            ),
            best(
                "audio alone", {"what is heard is seen": (heard, heard), "nothing is seen": (heard, nothing)}
            ),
            best("audio and visual", {"each by its modality": (heard, seen)}),
        )


def file_name(options: SyntheticOptions, scenario: Scenario) -> str:
    """`<id>_<start>_<end>`, a few with decimals."""
    start_s = int(generator(options, "id", scenario.index, 1).integers(0, 400))
    tenths = ".8" if scenario.index % DECIMAL_EVERY == DECIMAL_EVERY - 1 else ""
    return f"{scenario.clip_id}_{start_s}{tenths}_{start_s + options.seconds}{tenths}"


def stretches(present: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, int]]:
    """(class, start, end) of every unbroken stretch in which a class is present, by class."""
    for cls in sorted(set().union(*present)):
        there = np.array([False, *(cls in second for second in present), False])
        edges = np.flatnonzero(there[1:] != there[:-1])
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            yield cls, int(start), int(end)


def _labels(scenario: Scenario) -> list[int]:
    return sorted(set().union(*scenario.seen, *scenario.heard))


def type_at_av(
    audio: oracle.Mask, visual: oracle.Mask, true_audio: oracle.Mask, true_visual: oracle.Mask
) -> float:
    """LLP's segment-level F of guesses [N, K, T], in [0, 1]: per clip the mean over the classes guessed or true, then
    the mean over clips, then over audio, visual and both together."""
    pairs = ((audio, true_audio), (visual, true_visual), (audio & visual, true_audio & true_visual))
    return float(np.mean([_f(guess, truth) for guess, truth in pairs]))


def _f(guess: oracle.Mask, truth: oracle.Mask) -> NDArray[np.float64]:
    hits, all_ = 2.0 * (guess & truth).sum(axis=2), (guess.sum(axis=2) + truth.sum(axis=2)).astype(float)
    of_class = np.divide(hits, all_, out=np.zeros_like(hits), where=all_ > 0)
    present = (all_ > 0).sum(axis=1)
    of_clip = np.divide(of_class.sum(axis=1), present, out=np.ones(len(present)), where=present > 0)
    return np.asarray(of_clip.mean())


LAYOUT = _Llp()

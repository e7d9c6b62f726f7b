"""The world in the layouts of AVSBench's S4 and MS3: five images and a wav per clip, and exactly which pixels sound.

    Single-source/s4_meta_data.csv    s4_data/visual_frames, audio_wav, gt_masks /<split>/<category>/<id>...
    Multi-sources/ms3_meta_data.csv   ms3_data/visual_frames/<id>/, audio_wav and gt_masks /<split>/<id>...
    truth.jsonl                       as in AVE's layout, with the clip's `name`

In S4 one object sounds throughout beside silent ones, so an image alone does not tell which. In MS3 the sounding
objects change from second to second, and some sounds have no object, so masks can be empty. A mask holds the pixels
that show a sounding object, without those hidden by other objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.atomic import publish_bytes
from caeav.manifests.synthetic import oracle
from caeav.manifests.synthetic.casting import cast
from caeav.manifests.synthetic.classes import CLASSES, simple_name
from caeav.manifests.synthetic.layouts.base import write_lines, write_truth
from caeav.manifests.synthetic.media import png, wav
from caeav.manifests.synthetic.options import ALIGNED, SyntheticOptions
from caeav.manifests.synthetic.scenario import AUDIO, VISUAL, Scenario, begin, clip_id

LEAVES = 0.06
"""Share of S4's clips whose object is gone in the last second: its mask is empty, as a few real ones are."""
SHARED_EVERY = 8
"""Two of this many MS3 clips share a YouTube video, so that some videos lie in two splits, as many real ones do;
of material none do."""


class _Avs:
    """What both sets have in common."""

    measure = "IoU of masks (M_J), every object taken for equally large"
    masks_in_train: int | None

    def plan(self, options: SyntheticOptions, index: int) -> Scenario:
        raise NotImplementedError

    def places(self, scenario: Scenario, split: str) -> tuple[Path, Path, Path, str]:
        """Relative to the root: the folder of images, the wav, the folder of masks; and the pattern of image names."""
        raise NotImplementedError

    def name(self, scenario: Scenario) -> str:
        """The clip's name in the list and in its files."""
        return scenario.clip_id

    def last_file(self, root: Path, scenario: Scenario, split: str) -> Path:
        return root / self.places(scenario, split)[1]

    def write_clip(self, root: Path, options: SyntheticOptions, scenario: Scenario, split: str) -> None:
        from caeav.manifests.synthetic.audio import waveform
        from caeav.manifests.synthetic.render import stills

        images, wav_file, masks, pattern = self.places(scenario, split)
        players = cast(options, scenario, split)
        for number, (image, object_map) in enumerate(stills(options, scenario, players), start=1):
            publish_bytes(root / images / pattern.format(number), png(image))
            if split != "train" or self.masks_in_train is None or number <= self.masks_in_train:
                mask = np.isin(object_map, sounding_objects(scenario, number - 1))
                mask_file = root / masks / f"{self.name(scenario)}_{number}.png"
                publish_bytes(mask_file, png(self.mask_pixels(mask)))
        publish_bytes(root / wav_file, wav(waveform(options, scenario, players), options.rate_hz))

    def mask_pixels(self, mask: oracle.Mask) -> NDArray[np.bool_] | NDArray[np.uint8]:
        """The mask as this set stores it."""
        raise NotImplementedError

    def scores(self, options: SyntheticOptions, scenarios: Sequence[Scenario]) -> tuple[oracle.Score, ...]:
        seen = [len(second) for s in scenarios for second in s.seen]
        sounding = [len(sounding_objects(s, t)) for s in scenarios for t in range(len(s.seen))]
        pairs = list(zip(seen, sounding, strict=True))
        empty = float(np.mean([k == 0 for k in sounding]))
        everything = float(np.mean([k / n if n else 1.0 for n, k in pairs]))
        one = float(np.mean([(k / n) * (1 / k) if k else float(n == 0) for n, k in pairs]))
        rules = {"every object": everything, "one object at random": one, "no pixel": empty}
        best = max(rules, key=lambda rule: rules[rule])
        return (
            oracle.Score("nothing", empty, "no pixel"),
            oracle.Score("visual alone", rules[best], best),
            oracle.Score("audio and visual", 1.0, "the objects that sound"),
        )


class _S4(_Avs):
    masks_in_train = 1

    def plan(self, options: SyntheticOptions, index: int) -> Scenario:
        timeline, kind = begin(options, index)
        timeline.happen(0, options.seconds)
        if kind != ALIGNED:
            kind = "silent"
            for other in timeline.others[: timeline.between(1, 3)]:
                timeline.fill(VISUAL, other, 0, options.seconds)
        if timeline.rng.random() < LEAVES:
            timeline.present[VISUAL, timeline.category, -1] = False
        made = timeline.scenario(index, clip_id(options, index), kind)
        if options.material is None:
            return made
        return replace(made, category_name=options.simple_names()[made.category])

    def places(self, scenario: Scenario, split: str) -> tuple[Path, Path, Path, str]:
        data, name = Path("Single-source/s4_data"), scenario.clip_id
        category = scenario.category_name or simple_name(CLASSES[scenario.category].name)
        place = Path(split, category, name)
        audio = data / "audio_wav" / split / category / f"{name}.wav"
        return data / "visual_frames" / place, audio, data / "gt_masks" / place, name + "_{}.png"

    def mask_pixels(self, mask: oracle.Mask) -> NDArray[np.bool_] | NDArray[np.uint8]:
        return mask

    def write_lists(
        self, root: Path, options: SyntheticOptions, scenarios: Sequence[Scenario], splits: Sequence[str]
    ) -> None:
        names = options.simple_names()
        order = sorted(range(len(scenarios)), key=lambda i: (scenarios[i].category, i))
        rows = [f"{scenarios[i].clip_id},0,{names[scenarios[i].category]},{splits[i]}" for i in order]
        write_lines(root / "Single-source/s4_meta_data.csv", ["name,start,category,split", *rows])
        write_truth(root, options, scenarios, splits, [self.name(s) for s in scenarios])


class _Ms3(_Avs):
    masks_in_train = None

    def name(self, scenario: Scenario) -> str:
        return f"{scenario.clip_id}_{int(scenario.index % SHARED_EVERY == 1)}"

    def plan(self, options: SyntheticOptions, index: int) -> Scenario:
        timeline, kind = begin(options, index)
        seconds, others = options.seconds, timeline.others
        shown = [timeline.category, *(others.pop() for _ in range(timeline.between(1, 2)))]
        for cls in shown:
            timeline.fill(VISUAL, cls, 0, seconds)
        loud = shown if kind == ALIGNED else shown[: timeline.between(1, len(shown))]
        for cls in loud:
            whole = kind == ALIGNED or timeline.rng.random() < 0.4
            timeline.fill(AUDIO, cls, *((0, seconds) if whole else timeline.some_event(seconds - 1)))
        if kind in ("offscreen", "wrong_sound"):
            timeline.fill(AUDIO, others.pop(), *timeline.some_event(seconds))
        elif kind == "cut":
            timeline.cut_s = timeline.between(1, seconds - 1)
            timeline.present[VISUAL, shown[-1], timeline.cut_s :] = False
        elif kind == "silent":
            timeline.fill(VISUAL, others.pop(), 0, seconds)
        timeline.event = (0, seconds)
        shared = index % SHARED_EVERY == 1 and options.material is None
        name = clip_id(options, index - index % SHARED_EVERY if shared else index)
        return timeline.scenario(index, name, kind)

    def places(self, scenario: Scenario, split: str) -> tuple[Path, Path, Path, str]:
        data, name = Path("Multi-sources/ms3_data"), self.name(scenario)
        audio = data / "audio_wav" / split / f"{name}.wav"
        return data / "visual_frames" / name, audio, data / "gt_masks" / split / name, name + ".mp4_{}.png"

    def mask_pixels(self, mask: oracle.Mask) -> NDArray[np.bool_] | NDArray[np.uint8]:
        return mask.astype(np.uint8) * np.uint8(255)

    def write_lists(
        self, root: Path, options: SyntheticOptions, scenarios: Sequence[Scenario], splits: Sequence[str]
    ) -> None:
        rows = [f"{self.name(s)},{split}" for s, split in zip(scenarios, splits, strict=True)]
        write_lines(root / "Multi-sources/ms3_meta_data.csv", ["video_id,split", *rows])
        names = [name.replace("_", "-") for name in options.simple_names()]
        columns = "vid,uid,s_min,s_sec,a_obj,split,label"
        rows = [
            f"{self.name(s)},{self.name(s)},0,0,{'_'.join(names[i] for i in _sounding(s)) or 'background'},{split},v1m"
            for s, split in zip(scenarios, splits, strict=True)
        ]
        write_lines(root / "avss_metadata.csv", [columns, *rows])
        write_truth(root, options, scenarios, splits, [self.name(s) for s in scenarios])


def sounding_objects(scenario: Scenario, second: int) -> list[int]:
    """The objects that are seen and heard in a second."""
    return sorted(set(scenario.seen[second]) & set(scenario.heard[second]))


def _sounding(scenario: Scenario) -> list[int]:
    """The objects that are seen and heard at once in any second."""
    return sorted({i for second in range(len(scenario.seen)) for i in sounding_objects(scenario, second)})


S4, MS3 = _S4(), _Ms3()

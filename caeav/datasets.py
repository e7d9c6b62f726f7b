"""Tokens, captions and labels of one split as a torch data set: what `caeav.dataset` returns.

Shapes: `B` clips of a batch, `T` segments, `L` tokens per segment, `C` channels, `W` caption tokens.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from caeav.manifests.clip import SPLITS
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import some_of
from caeav.model.adapters.batch import Inputs
from caeav.model.tasks.base import TASKS
from caeav.model.tasks.datasets import mismatch_hint, task_for_dataset, task_from_labels
from caeav.model.tasks.sample import Sample
from caeav.model.train.data import CAPTION_ARRAYS, SplitData, taps_of
from caeav.model.train.experiment import inputs_of
from caeav.model.train.join import Joined, join, join_stores

FLAGS = ("frames_ok", "audio_ok")
BY_ARGUMENT = {"tokens": "tokens=[NAME]", "captions": "captions=NAME"}


class TokenDataset(Dataset[dict[str, Any]]):
    """The samples of one split: clips, or questions about clips for `avqa`. `dataset[i]` is a dictionary:

    - `key`: the sample's name
    - `tokens`: tap -> `[T, L, C]`, in the numbers that the store holds (float16 by default)
    - `captions`: `visual_caption` `[W, C]`, `visual_caption_mask` `[W]`, the same for `audio`; empty without captions
    - `frames_ok`, `audio_ok`: bool `[T]`, which segments hold real media
    - `targets`: the task's labels by name: `labels` `[T, K + 1]` for `ave` (background last), `labels` `[K]` of the
      clip for `avvp`, `answer` for `avqa`, `masks` `[T, bytes]` for `avs-*` (a bit per pixel); empty without a task
    - `extra`: what else the task reads, `question` for `avqa`

    `collate` makes a batch of such dictionaries: the same with a first axis `B`, and a list of keys. Records are
    checked against their checksums when first read in a process; a `DataLoader` may have workers of any kind.
    """

    def __init__(self, joined: Joined, split: str, task: str, inputs: Inputs) -> None:
        self.split, self.task, self.inputs = split, task, inputs
        self._joined = joined
        self._data: SplitData | None = None

    @classmethod
    def open(
        cls,
        dataset: str,
        split: str,
        tokens: Sequence[str],
        captions: bool | str,
        taps: Sequence[str],
        task: str | None,
        home: str | os.PathLike[str] | None,
    ) -> TokenDataset:
        """See `caeav.dataset`; says what a training would say about the stores as Python warnings."""
        if split not in SPLITS:
            raise CaeavError(f"no split is called {split!r}", hint=f"the splits are {some_of(SPLITS)}")
        name = captions if isinstance(captions, str) else ""
        joined = join_stores(
            Home.find(home), dataset, tokens, name, captions=bool(captions), taps=taps, by=BY_ARGUMENT
        )
        if task is None:
            task = task_for_dataset(dataset) or task_from_labels(joined.manifest)
        inputs = Inputs(dataset, joined.manifest.classes, joined.manifest.segment_s, joined.spec)
        if task:
            chosen = TASKS[task]
            joined = join(
                joined.manifest,
                joined.tokens,
                joined.captions,
                joined.remarks,
                taps=taps,
                samples=chosen.samples,
            )
            inputs = inputs_of(chosen, dataset, joined)
        if not joined.splits[split]:
            counts = ", ".join(f"{name} {len(samples)}" for name, samples in joined.splits.items())
            raise CaeavError(
                f"split {split!r} of {dataset!r} has no usable sample; there are {counts}",
                hint=mismatch_hint(task, dataset)
                or "name another split, or give the clips splits and extract again",
            )
        for remark in dict.fromkeys(joined.remarks):
            warnings.warn(remark, stacklevel=3)  # the caller of caeav.dataset
        return cls(joined, split, task, inputs)

    @property
    def samples(self) -> Sequence[Sample]:
        """The samples, with their clips and, for `avqa`, questions; in the order of the data set."""
        return self._joined.splits[self.split]

    @property
    def keys(self) -> Sequence[str]:
        """The samples' names."""
        return self._joined.splits[self.split].keys

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of what the labels distinguish."""
        return self.inputs.classes

    @property
    def left_out(self) -> Sequence[str]:
        """The keys of the split's clips that are in quarantine."""
        return self._joined.left_out[self.split]

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Tap -> `(T, L, C)`."""
        spec = self.inputs.spec
        return {tap.name: (spec.segments, tap.tokens, tap.channels) for tap in taps_of(spec)}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        data = self._open()
        clips = data.clips_of([index])
        arrays = {name: x[0] for name, x in data.clip_arrays(clips).items()}
        targets, extra = data.labels(index)
        return {
            "key": data.keys[index],
            "tokens": {name: x for name, x in arrays.items() if name not in (*CAPTION_ARRAYS, *FLAGS)},
            "captions": {name: arrays[name] for name in CAPTION_ARRAYS if name in arrays},
            **{name: arrays[name] for name in FLAGS},
            "targets": targets,
            "extra": extra,
        }

    @staticmethod
    def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch of samples, for `DataLoader(..., collate_fn=dataset.collate)`: arrays get a first axis `B`."""
        batch: dict[str, Any] = default_collate(list(samples))
        return batch

    def _open(self) -> SplitData:
        """Readers, targets and a lock, made anew in each process."""
        if self._data is None:
            targets: dict[str, Tensor] = {}
            extra: dict[str, Tensor] = {}
            if self.task:
                task = TASKS[self.task]
                targets = task.targets(self.inputs, self.samples)
                extra = task.extra_inputs(self.inputs, self.samples)
            self._data = SplitData(self._joined, self.samples, targets, extra=extra)
        return self._data

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}

    def __repr__(self) -> str:
        labels = f"labels of {self.task}" if self.task else "no labels"
        return f"<TokenDataset {self.inputs.dataset}, {self.split}: {len(self)} samples, {labels}>"

"""A trained run, ready to predict: what `caeav.load_run` returns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caeav.cli.options import live_opener
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import ignore
from caeav.manifests.keys import slug
from caeav.model.train.config_file import dump_config
from caeav.model.train.predict import Prediction, Predictor
from caeav.model.train.runs import Run, find_run
from caeav.pipeline.backbones.weights import remember_at
from caeav.pipeline.extract.single_file import process_file


class LoadedRun:
    """A run's network with its best weights."""

    def __init__(self, run: Run, predictor: Predictor, device: str) -> None:
        self._run, self._predictor, self._device = run, predictor, device

    @classmethod
    def load(
        cls, run: str | os.PathLike[str], *, device: str = "auto", home: str | os.PathLike[str] | None = None
    ) -> LoadedRun:
        """See `caeav.load_run`."""
        place = Home.find(home)
        remember_at(place, ignore)
        found = find_run(place, str(run))
        return cls(found, Predictor.load(found, device, live_opener(place)), device)

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self._run.name

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._run.folder

    @property
    def config(self) -> str:
        """The resolved configuration as YAML."""
        return dump_config(self._predictor.config)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of what the run distinguishes."""
        return self._predictor.inputs.classes

    @property
    def result(self) -> dict[str, Any] | None:
        """What `result.json` holds: scores with intervals, parameters, times; None while training is unfinished."""
        return self._run.result()

    def predict(
        self,
        file: str | os.PathLike[str],
        *,
        start_s: float = 0.0,
        question: str = "",
        features: Mapping[str, Path] | None = None,
    ) -> Prediction:
        """What the run finds in a media file from `start_s` on, as many seconds as its clips have.

        The file is decoded in a process of its own and goes through the backbones and captioners that made the run's
        tokens and captions. `question`: what to answer (`avqa`). `features`: tap -> file, for runs on imported ones.
        Raises `CaeavError` for a file that cannot be decoded, and for components that are no longer what they were.
        """
        self._predictor.check(question)
        path = Path(file)
        made = process_file(
            path,
            self._run.token_recipes(),
            self._run.caption_recipe(),
            start_s=start_s,
            device=self._device,
            features=features,
        )
        arrays = dict(made.tokens.arrays) | dict(made.captions.arrays if made.captions else {})
        return self._predictor.predict(slug(path.stem), arrays, made.tokens.info, start_s, question)

    def __repr__(self) -> str:
        return f"<LoadedRun {self.name}>"

"""A finished run as a folder that can be handed on: what predicting and scoring need, with a card for a model hub.

    README.md            the card, with what hubs read at its head
    model.safetensors    adapters and head with their statistics; the frozen backbones are named in stores.json alone
    config.yaml, inputs.json, stores.json, result.json, origin.json, environment.json, agreement.json

A package is itself a run folder: every command takes it where it takes a run. Only these files are ever taken out of a
package, each of a limited size; none of them can hold code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from caeav.manifests.core.atomic import is_taken, publish_bytes, publish_text, publishing_folder
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import size_text
from caeav.model.train.agreement import AGREEMENT_FILE
from caeav.model.train.checkpoint import read_tensors
from caeav.model.train.runs import CARD, CONFIG, ENVIRONMENT, INPUTS, ORIGIN, RESULT, Run
from caeav.model.train.session import MODEL, best_weights
from caeav.model.train.used_stores import STORES

README = "README.md"
NEEDED = (CONFIG, INPUTS, STORES, RESULT)
TAKEN = (*NEEDED, MODEL, ORIGIN, ENVIRONMENT, AGREEMENT_FILE)
MAX_BYTES = {MODEL: 8 << 30}
MAX_OTHER = 64 << 20


class PackageError(CaeavError):
    """A folder that is no package, or a run that cannot be one yet."""


def pack(run: Run, folder: Path) -> Path:
    """Write the package of a finished run into the new folder `folder`; raises `PackageError`."""
    missing = [name for name in NEEDED if not (run.folder / name).is_file()]
    if missing:
        raise PackageError(
            f"run {run.name} lacks {', '.join(missing)}",
            hint=f"finish it first: caeav train --resume {run.name}",
        )
    if is_taken(folder):
        raise PackageError(f"{folder} is not empty", hint="name a new folder, or remove this one")
    # the command has paths of the machine it ran on
    origin = {**run.origin(), "command": "", "name": run.name}
    with publishing_folder(folder) as work:
        for name in TAKEN:
            if name not in (ORIGIN, MODEL) and (run.folder / name).is_file():
                publish_bytes(work / name, (run.folder / name).read_bytes())
        publish_bytes(work / MODEL, best_weights(run).read_bytes())
        publish_text(work / ORIGIN, json.dumps(origin, indent=2) + "\n")
        publish_text(work / README, card(run))
    return folder


def card(run: Run) -> str:
    """The run's own card under a head that hubs read: what it is for, on what it was trained, what it scored."""
    config, result = run.config(), run.result()
    assert result is not None  # `pack` has seen it
    head = {
        "library_name": "caeav",
        "tags": ["audio-visual", "adapter", config.task, config.recipe],
        "base_model": list(dict.fromkeys(_hub_names(run))),
        "model-index": [
            {
                "name": run.name,
                "results": [
                    {
                        "task": {"type": config.task},
                        "dataset": {"name": config.dataset, "type": config.dataset, "split": split},
                        "metrics": [{"type": result["metric"], "value": value}],
                    }
                    for split, value in result["scores"].items()
                ],
            }
        ],
    }
    body = (run.folder / CARD).read_text(encoding="utf-8") if (run.folder / CARD).is_file() else ""
    use = (
        "\n## Use\n\n    caeav runs pull hub:OWNER/REPO          # or the folder it was downloaded into\n"
        f"    caeav predict video.mp4 --run {run.name}\n"
    )
    kept = {key: value for key, value in head.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}---\n\n{body}{use}"


def unpack(package: Path, home: Home) -> Run:
    """Take the package in the folder `package` into `home` under the run's own name.

    Raises `PackageError` for a folder that lacks something, a file that is too large or no tensors, and where a run of
    that name is there already.
    """
    missing = [name for name in (*NEEDED, MODEL) if not (package / name).is_file()]
    if missing:
        raise PackageError(
            f"{package} is no package of a run: it lacks {', '.join(missing)}",
            hint="caeav runs push makes one",
        )
    for name in TAKEN:
        most = MAX_BYTES.get(name, MAX_OTHER)
        if (package / name).is_file() and (size := (package / name).stat().st_size) > most:
            raise PackageError(
                f"{package / name} has {size_text(size)}; at most {size_text(most)} are taken",
                hint="take it from its source again",
            )
    source = Run(package)
    for part in (source.config, source.inputs, source.token_recipes):
        part()  # raises for a file that is not what it should be
    read_tensors(package / MODEL)
    named = str(source.origin().get("name", "")) or package.name
    name = Path(named).name
    place = home.runs / name
    if place.exists():
        raise PackageError(
            f"a run called {name} is in {home.runs} already", hint=f"remove it first: caeav runs rm {name}"
        )
    with publishing_folder(place) as work:
        for each in TAKEN:
            if (package / each).is_file():
                publish_bytes(work / each, (package / each).read_bytes())
        if (package / README).is_file():
            text = (package / README).read_text(encoding="utf-8")
            publish_text(work / CARD, text.split("---\n\n", 1)[-1])
    return Run(place)


def _hub_names(run: Run) -> Iterator[str]:
    """The hub repositories that the frozen backbones came from."""
    for recipe in run.token_recipes():
        for part in recipe.fields.values():
            weights = part.get("weights") if isinstance(part, dict) else None
            source = str(weights.get("source", "")) if isinstance(weights, dict) else ""
            if source.startswith("hub:"):
                yield source.removeprefix("hub:").partition("#")[0]

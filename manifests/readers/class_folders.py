"""Labels and splits from where files lie: `<class>/<file>`, or `<split>/<class>/<file>` as image folders have it.

Nobody guesses: files that lie deeper, or split folders beside class folders, are refused with the ways out. A file in
no class folder has no label and no split. A class called background is background.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from caeav.manifests.clip import Finding
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import finding
from caeav.manifests.readers.labels import EXAMPLES, LabelRow
from caeav.manifests.wording import counted

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_HINT = "lay files as <class>/<file> or <split>/<class>/<file>, or write a label file: --labels labels.csv"


def read_folders(root: Path, files: Sequence[str], findings: list[Finding]) -> list[LabelRow]:
    """A row without times for each file in a class folder; raises `CaeavError` where two readings are possible."""
    parts = {file: PurePosixPath(file).parts for file in files}
    tops = dict.fromkeys(path[0] for path in parts.values() if len(path) > 1)
    if files and not tops:
        raise CaeavError(f"{root}: its files lie in no folder, so no folder names a class", hint=_HINT)
    splits = [top for top in tops if top.lower() in SPLIT_FOLDERS]
    inner = [top for top in splits if any(path[0] == top and len(path) > 2 for path in parts.values())]
    if inner and len(splits) < len(tops):
        other = next(top for top in tops if top not in splits)
        raise CaeavError(
            f"{root}: {inner[0]!r} is a split by its name, {other!r} beside it is none; which are the classes?",
            hint=_HINT,
        )
    if splits and not inner and len(splits) == len(tops):
        raise CaeavError(
            f"{root}: files lie in {', '.join(map(repr, splits))}, which are splits by their names, and in no class",
            hint=_HINT,
        )
    depth = 3 if inner else 2
    deeper = [file for file, path in parts.items() if len(path) > depth]
    if deeper:
        raise CaeavError(
            f"{root}: {counted(len(deeper), 'file')} too deep for {'<split>/' if inner else ''}<class>/<file>, such as "
            f"{', '.join(deeper[:EXAMPLES])}; which folder is their class?",
            hint=_HINT,
        )
    rows = []
    for file, path in parts.items():
        if len(path) == depth:
            label = unicodedata.normalize("NFC", path[-2])
            split = SPLIT_FOLDERS[path[0].lower()] if inner else ""
            rows.append(LabelRow(0, file, None, "" if label.lower() == "background" else label, split))
    classes = sorted({row.label for row in rows if row.label})
    if inner:
        said = ", ".join(f"{top}/ as {SPLIT_FOLDERS[top.lower()]}" for top in splits)
    else:
        said = "no splits (lay files as <split>/<class>/<file> for them)"
    some = f"{', '.join(classes[:EXAMPLES])}{', ...' if len(classes) > EXAMPLES else ''}"
    findings.append(
        finding("labels_read_as", root.name, f"{counted(len(classes), 'class folder')} ({some}), {said}")
    )
    return rows

"""`caeav caption show` and `export`, without a store: which stores answer, what is told, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from caeav.cli import caption as caption_command
from caeav.cli import datasets
from caeav.manifests.core.errors import CaeavError


class Reader:
    """Stands for an open caption store."""

    def __init__(self, name: str, *keys: str, quarantined: int = 0, missing: int = 0) -> None:
        self.path, self.keys = Path(name), keys
        part = {
            "name": "mine",
            "settings": {"beams": 3},
            "version": 2,
            "weights": WEIGHTS,
            "text": {"name": "hashed"},
        }
        self.recipe = SimpleNamespace(
            fields={"visual": part, "audio": {"name": "none", "text": {"name": "x"}}}
        )
        self.quarantined, self.missing = [""] * quarantined, [""] * missing
        self.manifest = SimpleNamespace(clips=[""] * (len(keys) + quarantined + missing))

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, key: str) -> Any:
        if key not in self.keys:
            raise CaeavError(f"no {key}", hint="another")
        mask = np.array([1, 1, 0, 0], np.uint8)
        arrays = {
            f"{modality}_caption{end}": x
            for modality in ("visual", "audio")
            for end, x in (("", TOKENS), ("_mask", mask))
        }
        return SimpleNamespace(arrays=arrays, info={"texts": {"visual": f"seen in {self.path}", "audio": ""}})


WEIGHTS = {"source": "hub:a/b", "digest": "sha256:" + "1" * 64}
TOKENS = np.zeros((4, 8), np.float16)


def call(*arguments: str) -> Result:
    app = typer.Typer()
    for command in (caption_command.show, caption_command.export, caption_command.embed):
        app.command()(command)
    result = CliRunner().invoke(app, [*arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> dict[Path, Reader]:
    """The caption stores there are, by path."""
    held: dict[Path, Reader] = {}

    class Opener:
        @staticmethod
        def open(path: Path, allow_partial: bool = False) -> Reader:
            assert allow_partial
            return held[path]

    monkeypatch.setattr(caption_command, "StoreReader", Opener)
    monkeypatch.setattr(datasets, "name", lambda dataset, place: dataset or "last")
    monkeypatch.setattr(caption_command, "find_store", lambda folder, name, kind, store: Path(store or "one"))
    infos = lambda folder: [  # noqa: E731
        SimpleNamespace(path=path, dataset=dataset, kind=kind)
        for path, dataset, kind in (
            (Path("one"), "last", "captions"),
            (Path("two"), "last", "captions"),
            (Path("tokens"), "last", "tokens"),
            (Path("other"), "another", "captions"),
        )
    ]
    monkeypatch.setattr(caption_command, "list_stores", infos)
    return held


def test_a_clip_is_shown_from_every_caption_store_that_has_it(stores: dict[Path, Reader]) -> None:
    stores |= {Path("one"): Reader("one", "a"), Path("two"): Reader("two", "a", "b")}
    both, one, named = (
        json.loads(call("show", *words, "--json").stdout)
        for words in (("a",), ("b",), ("a", "--store", "two"))
    )
    assert [x["path"] for x in both] == ["one", "two"]
    assert [x["path"] for x in one] == [x["path"] for x in named] == ["two"]
    with pytest.raises(CaeavError, match="no c"):
        call("show", "c")
    assert both[0]["key"] == "a" and both[0]["visual"] == {
        "text": "seen in one",
        "text_backbone": {"name": "hashed"},
        "captioner": {"name": "mine", "settings": {"beams": 3}, "version": 2, "weights": WEIGHTS},
        "tokens": 2,
        "shape": [4, 8],
        "dtype": "float16",
    }


def test_words_say_who_wrote_and_embedded_a_text(stores: dict[Path, Reader]) -> None:
    stores |= {Path("one"): Reader("one", "a"), Path("two"): Reader("two")}
    shown = " ".join(call("show", "a").stdout.split())
    for text in (
        "visual seen in one written by mine (hub:a/b, sha256:111111111111) with version 2, beams 3",
        "embedded by hashed: 2 tokens of 4 x 8 float16",
        "audio (none) written by none embedded by x: 2 tokens",
    ):
        assert text in shown


def test_an_export_tells_what_has_no_captions(
    stores: dict[Path, Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores[Path("one")] = Reader("one", "a", quarantined=2, missing=3)
    stores[Path("two")] = Reader("two", "a")
    monkeypatch.setattr("caeav.pipeline.captioners.export.rows_of", lambda reader: reader)
    monkeypatch.setattr(
        "caeav.pipeline.captioners.export.render", lambda rows, form: f"{rows.path} as {form}\n"
    )
    said: list[str] = []
    monkeypatch.setattr(caption_command, "say", said.append)
    assert call("export").stdout == "one as csv\n"
    wanted = [
        "2 of 6 clips have no captions: in quarantine",
        "3 of 6 clips have no captions: not yet made",
    ]
    assert said == wanted
    said.clear()
    out = tmp_path / "out.jsonl"
    assert call("export", "--format", "jsonl", "--store", "two", "-o", str(out)).stdout == ""
    assert out.read_text() == "two as jsonl\n" and said == [f"1 clip written to {out}"]
    with pytest.raises(CaeavError, match=r"unknown format 'xml'\n  next: choose one of: csv"):
        call("export", "--format", "xml")


def test_options_of_the_group_are_pointed_behind_its_command() -> None:
    app, group = typer.Typer(), typer.Typer(invoke_without_command=True)
    asked: list[bool] = []

    @group.callback()
    def caption(context: typer.Context, batch: int = 1) -> None:
        asked.append(caption_command._sub_command_named(context))

    @group.command()
    def show() -> None:
        """Nothing."""

    app.add_typer(group, name="caption")
    app.command("else")(lambda: None)
    run = CliRunner().invoke
    for words in (["caption"], ["caption", "--batch", "2"], ["caption", "show"]):
        assert run(app, words).exit_code == 0
    assert asked == [False, False, True]
    wrong = run(app, ["caption", "--batch", "2", "show"])
    assert wrong.exit_code == 2
    assert "--batch belongs after the command: caeav caption show --batch" in " ".join(wrong.output.split())

"""Folders and csv files joined to a material: what is found, how it is split, what is left out, what is missing."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from material_world import CLASSES, make_material, save_picture, save_sound
from PIL import Image

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.synthetic.material import Material, load_material
from caeav.manifests.synthetic.material_lists import Offer, known_extension, offers
from caeav.manifests.synthetic.media import wav
from caeav.manifests.synthetic.options import SyntheticOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_material(tmp_path / "mine")


def refusal(*sources: Path, **other: object) -> str:
    with pytest.raises(CaeavError) as caught:
        load_material(sources, **other)  # type: ignore[arg-type]
    return str(caught.value)


def splits(material: Material, kind: str, cls: str) -> dict[str, str]:
    return {f.name: f.split for f in material.files if (f.kind, f.cls) == (kind, cls)}


def test_classes_are_the_names_with_a_picture_and_a_sound_in_order(folder: Path) -> None:
    save_picture(folder / "pictures" / "aaa" / "x.png", 0, 0)
    save_sound(folder / "sounds" / "zzz" / "x.wav", 0, 0)
    (folder / "pictures" / ".hidden").mkdir()
    material = load_material([folder])
    assert material.classes == CLASSES
    assert {f.cls for f in material.files} == set(CLASSES)
    assert material.left_out == ("aaa: no sound", "zzz: no picture")


def test_each_split_gets_a_file_of_each_class_before_any_gets_two(folder: Path) -> None:
    for n in range(3, 20):
        save_sound(folder / "sounds" / "dog" / f"{n}.wav", 9, n)
    material = load_material([folder])
    for cls in CLASSES:
        for kind in ("picture", "sound"):
            counts = Counter(splits(material, kind, cls).values())
            wanted = {"train": 14, "val": 3, "test": 3} if (kind, cls) == ("sound", "dog") else None
            assert counts == (wanted or {"train": 1, "val": 1, "test": 1})
    only_train = load_material([folder], shares=(1.0, 0.0, 0.0))
    assert {f.split for f in only_train.files} == {"train"}


def test_how_files_are_split_follows_from_their_names_alone(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert load_material([copy]).to_json() == load_material([folder]).to_json()
    save_sound(copy / "sounds" / "dog" / "2.wav", 8, 8)
    changed = load_material([copy])
    assert splits(changed, "sound", "dog") == splits(load_material([folder]), "sound", "dog")
    assert changed.to_json()["digest"] != load_material([folder]).to_json()["digest"]


def test_a_csv_in_the_folder_fixes_the_split_and_which_files_are_used(folder: Path) -> None:
    rows = [f"{c},{c}/{n}.png,{s}" for c in CLASSES for n, s in ((0, "test"), (1, "val"), (2, "train"))]
    (folder / "pictures.csv").write_text("class,file,split\n" + "\n".join(rows))
    save_picture(folder / "pictures" / "dog" / "9.png", 7, 7)
    material = load_material([folder])
    assert splits(material, "picture", "dog") == {
        "dog/0.png": "test",
        "dog/1.png": "val",
        "dog/2.png": "train",
    }


def test_two_sources_are_joined_and_folds_become_splits(folder: Path, tmp_path: Path) -> None:
    """As ESC-50 comes: a csv in `meta`, recordings in `audio` beside it, five folds."""
    for c, name in enumerate(CLASSES):
        for fold in range(1, 6):
            save_sound(tmp_path / "esc" / "audio" / f"{fold}-{name}.wav", c, 10 + fold / 10)
    listed = tmp_path / "esc" / "meta" / "esc.csv"
    listed.parent.mkdir()
    rows = [f"{fold}-{name}.wav,{fold},{name}" for name in CLASSES for fold in range(1, 6)]
    listed.write_text("filename,fold,category\n" + "\n".join(rows))
    shutil.rmtree(folder / "sounds")
    material = load_material([folder, listed])
    assert material.classes == CLASSES
    assert splits(material, "sound", "cat") == {
        "cat/1-cat.wav": "train",
        "cat/2-cat.wav": "train",
        "cat/3-cat.wav": "train",
        "cat/4-cat.wav": "val",
        "cat/5-cat.wav": "test",
    }


def test_backgrounds_are_found_at_any_depth_and_split_too(folder: Path, tmp_path: Path) -> None:
    places = [folder / "backgrounds" / "a.png", *(tmp_path / "far" / "in" / f"{n}.png" for n in range(2))]
    for n, place in enumerate(places):
        save_picture(place, 3, 20 + n)
    material = load_material([folder], backgrounds=tmp_path / "far")
    assert Counter(splits(material, "background", "").values()) == {"train": 1, "val": 1, "test": 1}
    assert set(splits(material, "background", "")) == {"a.png", "in/0.png", "in/1.png"}
    places[0].unlink()
    assert "all: no background for test (train 1, val 1, test 0)" in refusal(
        folder, backgrounds=tmp_path / "far"
    )
    assert "is not a folder" in refusal(folder, backgrounds=tmp_path / "nowhere")


def test_files_that_cannot_be_used_are_left_out_with_the_reason(folder: Path) -> None:
    dog = folder / "pictures" / "dog"
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(dog / "clear.png")
    (dog / "broken.png").write_bytes(b"\x89PNG\r\n")
    (dog / "notes.txt").write_text("mine")
    (dog / ".DS_Store").write_bytes(b"x")
    shutil.copy(dog / "0.png", dog / "same.png")
    sounds = folder / "sounds" / "dog"
    (sounds / "quiet.wav").write_bytes(wav(np.zeros(16_000, np.float32), 16_000))
    (sounds / "page.wav").write_text("<html>")
    (sounds / "list.mp3").write_text("#EXTM3U\n0.wav\n")
    shutil.copy(dog / "0.png", sounds / "picture.wav")
    left_out = dict(line.split(": ", 1) for line in load_material([folder]).left_out)
    assert left_out["dog/clear.png"] == "it is transparent all over"
    assert left_out["dog/broken.png"].startswith("it is not a readable picture (")
    assert left_out["dog/notes.txt"] == "its name does not end like a picture's"
    assert left_out["dog/same.png"] == "it has the same bytes as dog/0.png"
    assert left_out["dog/quiet.wav"] == "it is silent"
    assert {name for name, why in left_out.items() if why.startswith("it is not readable media (")} == {
        "dog/page.wav",
        "dog/list.mp3",
        "dog/picture.wav",
    }
    assert len(left_out) == 8


def test_missing_material_is_refused_with_what_is_missing(folder: Path, tmp_path: Path) -> None:
    assert "has none of pictures/, sounds/, backgrounds/" in refusal(tmp_path)
    assert "no such folder or csv file" in refusal(tmp_path / "nowhere")
    (folder / "sounds" / "dog" / "1.wav").unlink()
    text = refusal(folder)
    assert "dog: no sound for test (train 1, val 1, test 0)" in text or "dog: no sound for val" in text
    assert "picture" not in text and "--splits 0.8,0,0.2" in text
    assert load_material([folder], shares=(0.8, 0.0, 0.2)).classes == CLASSES
    shutil.rmtree(folder / "sounds" / "dog")
    text = refusal(folder)
    assert "4 classes of the material have a picture and a sound (bell, cat, drum, rain (heavy))" in text
    assert "at least 5 are needed" in text and "dog: no sound" in text


@pytest.mark.parametrize("name", ["background", "Yes", "a&b", "tab\tb", "-x", "MIDDLE"])
def test_names_that_official_lists_cannot_hold_are_refused(folder: Path, name: str) -> None:
    (folder / "pictures" / "dog").rename(folder / "pictures" / name)
    assert "cannot be names of classes" in refusal(folder)


def test_names_that_would_be_written_alike_are_refused(folder: Path) -> None:
    for kind in ("pictures", "sounds"):
        (folder / kind / "cat").rename(folder / kind / "Rain heavy")
    assert "'Rain heavy', 'rain (heavy)'" in refusal(folder)


@pytest.mark.parametrize(
    "text, said",
    [
        ("name,class\nx,dog\n", "no column `file`; it has name, class"),
        ("", "no column `file`; it has none"),
        ("file,class,split\ndog/0.png,dog,dev\n", "line 2 has kind 'picture' and split 'dev'"),
        ("file,class,kind\ndog/0.png,dog,film\n", "line 2 has kind 'film'"),
        ("file,class,kind\ndog/0.png,,picture\n", "line 2 has class '' and kind 'picture'"),
        ("file,class\ndog/7.png,dog\ndog/0.png,dog\n", "names 1 of 2 files that are not there: dog/7.png"),
        ("file,class,fold\ndog/0.png,dog,a\n", "a fold is no number"),
        ('file,class\n"dog/0.png,dog\n', "not a csv file"),
        ("file,class\n\udcff,dog\n", "not a csv file in UTF-8"),
    ],
)
def test_a_wrong_csv_is_refused_with_its_line(folder: Path, text: str, said: str) -> None:
    path = folder / "list.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert said in refusal(path)


def test_the_kind_of_a_listed_file_follows_from_its_extension(folder: Path) -> None:
    path = folder / "list.csv"
    path.write_text("file,class\ndog/0.png,dog\ndog/0.wav,dog\ndog/1.png,\n")
    save_picture(folder / "backgrounds" / "dog" / "1.png", 1, 1)
    found = offers(path)
    assert [(o.kind, o.cls, o.split) for o in found] == [
        ("picture", "dog", ""),
        ("sound", "dog", ""),
        ("background", "", ""),
    ]
    assert found[2].path.parts[-3:] == ("backgrounds", "dog", "1.png")

    def may_be(kind: str, name: str) -> bool:
        return known_extension(Offer(kind, "", Path(name), name, ""))

    assert may_be("picture", "a.PNG") and not may_be("picture", "a.mp4")
    assert may_be("sound", "a.mp4") and may_be("sound", "a.ogg") and not may_be("sound", "a.png")
    assert (
        may_be("background", "a.jpg") and may_be("background", "a.mp4") and not may_be("background", "a.csv")
    )


def test_options_take_their_classes_from_the_material(folder: Path) -> None:
    material = load_material([folder])
    options = SyntheticOptions.for_layout("avs-s4", material=material)
    assert (options.classes, options.seconds) == (5, 5) and options.names() == CLASSES
    assert options.simple_names()[4] == "rain_heavy" and options.llp_names()[4] == "rain_(heavy)"
    assert options.to_json()["material"] == {
        "classes": list(CLASSES),
        "picture": 15,
        "sound": 15,
        "background": 0,
        "digest": material.to_json()["digest"],
    }
    with pytest.raises(CaeavError, match="classes is 6; allowed are whole numbers from 5 to 5"):
        SyntheticOptions(material=material, classes=6)
    assert "material" not in SyntheticOptions().to_json()

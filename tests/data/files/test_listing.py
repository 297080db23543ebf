"""Which files of a folder are the samples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from qcompiler.data.files import listing as module
from qcompiler.data.files.listing import kind_at, listing, natural, spread
from qcompiler.errors import DataError


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_classes_are_taken_in_turn_and_the_choice_depends_on_names_alone(tmp_path: Path) -> None:
    names = [f"{kind}/{index}.JPEG" for kind in "abc" for index in range(20)]
    first, second = put(tmp_path / "one", *names), put(tmp_path / "two", *reversed(names))
    found = listing(first, 7)
    assert str(found) == "7 of 60 pictures, spread over 3 folders"
    assert Counter(file.parent.name for file in found.files).most_common()[0][1] == 3
    other = [file.relative_to(second) for file in listing(second, 7).files]
    assert [file.relative_to(first) for file in found.files] == other
    assert [int(file.stem) for file in listing(first / "a", 7).files] != list(range(7))  # neighbours are often alike


def test_a_small_class_leaves_its_places_to_the_others(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", *(f"b/{index}.png" for index in range(9)))
    assert Counter(file.parent.name for file in listing(tmp_path, 5).files) == {"a": 1, "b": 4}


def test_of_many_pictures_so_many_are_taken_as_is_usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 4)
    put(tmp_path, *(f"{index}.png" for index in range(9)))
    assert str(listing(tmp_path, None)) == "4 of 9 pictures"
    assert str(listing(tmp_path, 100)) == "9 pictures"


def test_annotations_beside_the_images_are_no_pictures(tmp_path: Path) -> None:
    put(tmp_path, "images/train/1.jpg", "images/val/2.jpg", "annotations/1.png", "labels/1.txt", "annotations/all.json")
    assert sorted(file.name for file in listing(tmp_path, None).files) == ["1.jpg", "2.jpg"]


def test_hidden_files_are_no_samples(tmp_path: Path) -> None:
    put(tmp_path, "a.png", ".hidden.png", "__MACOSX/._a.png", "Thumbs.db", ".cache/b.png")
    assert [file.name for file in listing(tmp_path, None).files] == ["a.png"]


def test_arrays_stand_before_pictures_pictures_before_sounds_and_these_before_the_rest(tmp_path: Path) -> None:
    for name, kind in (("note.txt", "files"), ("a.wav", "sounds"), ("a.png", "pictures"), ("a.npz", "arrays")):
        put(tmp_path, name)
        assert kind_at(tmp_path) == kind
        assert kind_at(tmp_path / name) == kind


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert kind_at(tmp_path) == ""
    with pytest.raises(DataError, match=r"has no \.npz file, no \.npy file, no picture and no sound"):
        listing(tmp_path, None)


def test_files_are_spread_whatever_order_they_come_in(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a/1", "a/2", "b/1", "c/1")]
    assert spread(tmp_path, files, 3) == spread(tmp_path, reversed(files), 3)
    assert len({file.parent for file in spread(tmp_path, files, 3)}) == 3


def test_numbers_sort_by_value() -> None:
    assert sorted(["x10", "x9", "y1"], key=natural) == ["x9", "x10", "y1"]


def test_folders_that_are_links_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "all", "cat/1.png", "dog/2.png")
    (tmp_path / "few").mkdir()
    (tmp_path / "few/cat").symlink_to(tmp_path / "all/cat")
    (tmp_path / "few/round").symlink_to(tmp_path / "few")
    assert listing(tmp_path / "few", None).there == 1


def test_what_is_prepared_is_pictures_and_no_arrays_beside_them(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "labels.npy")
    assert listing(tmp_path, None).kind == "arrays"
    assert listing(tmp_path, None, prepared=True).kind == "pictures"

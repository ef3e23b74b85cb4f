"""Photos under another spelling: taken where exactly one file fits, and otherwise named in the message."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from gs_train.scene.photos.find import FoundFiles, find_files, leads_out, spelling

NFC, NFD = (unicodedata.normalize(form, "Küche_한") for form in ("NFC", "NFD"))
GBK = "照片_1.png".encode("gbk").decode("utf-8", "surrogateescape")


def _find(folder: Path, files: list[str], names: list[str]) -> FoundFiles:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return find_files(folder, names)


def _paths(found: FoundFiles) -> dict[str, str]:
    return {name: file.relative_to(found.folder).as_posix() for name, file in found.files.items()}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.png", "a.PNG"),
        ("IMG_1.JPG", "img_1.jpg"),
        ("a.png", "a.jpg"),
        ("a.CR2", "a.jpg"),
        ("a", "a.tiff"),
        ("a.b", "a.b.png"),
        ("frame.000.png", "frame.000.jpeg"),
        ("cam0\\a.png", "cam0/a.png"),
        ("./cam0//a.png", "Cam0/a.PNG"),
        (f"{NFC}.png", f"{NFD}.png"),
        (f"{NFD}.png", f"{NFC}.PNG"),
        ("my%20photo.png", "my photo.png"),
        ("images/a.png", "a.png"),
        ("project/images/cam0/a.png", "cam0/a.png"),
        ("a.png", "cam0/a.png"),
        ("../images/a.png", "a.png"),
        ("C:\\Users\\me\\scene\\images\\a.png", "a.png"),
        ("/home/me/pictures/a.png", "walk/a.png"),
        ("file:///home/me/images/a.png", "a.png"),
    ],
)
def test_another_spelling(tmp_path: Path, name: str, file: str) -> None:
    other = "zzz.png" if "/" not in file else f"{file.partition('/')[0]}/zzz.png"
    found = _find(tmp_path, [file, other], [name])
    assert _paths(found) == {name: file}
    assert len(found.respelled) == 1 and found.respelled[0][1] == file and found.several == {}
    assert found.others == (other,)
    assert "1 names in model.txt are spelled otherwise" in found.notice(Path("model.txt"))[0]


def test_exact_names_come_first_and_say_nothing(tmp_path: Path) -> None:
    found = _find(tmp_path, ["a.png", "A.png", "a.jpg", "sub/a.png"], ["a.png", "sub/a.png"])
    assert _paths(found) == {"a.png": "a.png", "sub/a.png": "sub/a.png"}
    assert found.notice(tmp_path) == [] and found.names == {"a.png": "a.png", "sub/a.png": "sub/a.png"}


@pytest.mark.parametrize(
    ("files", "names", "expected"),
    [
        # The longest common end decides, then the ending, then the folder images.
        (["cam0/a.png", "a.png"], ["x/cam0/a.png"], {"x/cam0/a.png": "cam0/a.png"}),
        (["a.jpg", "a.PNG"], ["a.png"], {"a.png": "a.PNG"}),
        (["images/a.png", "images_4/a.png", "masks/a.png"], ["a.png"], {"a.png": "images/a.png"}),
        (["images/a.png", "masks/a.png"], ["/data/masks/a.png"], {"/data/masks/a.png": "masks/a.png"}),
        (["b/a.png"], ["/data/c/a.png"], {"/data/c/a.png": "b/a.png"}),
        # Another folder is another photo, unless the path is that of another computer.
        (["cam1/a.png"], ["cam0/a.png"], {}),
        # A file of an exact name is not taken twice, and no name takes the file of another one.
        (["a.png"], ["a.png", "A.png"], {"a.png": "a.png"}),
        (["a.png"], ["x/a.png", "y/a.png"], {}),
        (["a.jpg", "a.jpeg"], ["a.png"], {}),
        # Hidden files, and files that are no photos.
        ([".a.png", "._a.png", ".cache/a.png", "a.txt", "a.json"], ["a.PNG"], {}),
    ],
)
def test_which_file_fits(tmp_path: Path, files: list[str], names: list[str], expected: dict[str, str]) -> None:
    assert _paths(_find(tmp_path, files, names)) == expected


def test_names_stay_as_the_model_gives_them_inside_the_folder(tmp_path: Path) -> None:
    names = {"cam0\\A.png": "cam0/A.png", "/other/b.png": "b.PNG", "c.png": "c.png"}
    found = _find(tmp_path, ["cam0/a.png", "b.PNG", "c.png"], list(names))
    assert found.names == names


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("照片_1.png", "gbk"),
        ("사진_1.png", "cp949"),
        ("写真_表.png", "cp932"),
        ("Küche_1.png", "latin-1"),
        ("кухня_1.png", "cp1251"),
        ("Küche_1.png", "cp850"),
    ],
)
@pytest.mark.parametrize("file", ["{text}", "sub/{text}"])
def test_names_in_another_code_page(tmp_path: Path, text: str, encoding: str, file: str) -> None:
    """One name happens to be valid UTF-8, and one is ASCII."""
    raw = [name.encode(encoding).decode("utf-8", "surrogateescape") for name in (text, text.replace("1", "2"))]
    found = _find(
        tmp_path, [file.format(text=text), file.format(text=text.replace("1", "2")), "b.png"], [*raw, "b.png"]
    )
    assert found.names == {raw[0]: text, raw[1]: text.replace("1", "2"), "b.png": "b.png"}
    assert "are not UTF-8 text: they fit the files" in found.notice(tmp_path)[0]


def test_files_of_an_old_archive_keep_the_bytes_of_their_names(tmp_path: Path) -> None:
    file = os.fsencode(tmp_path) + b"/" + "照片_1.png".encode("gbk")
    try:
        Path(os.fsdecode(file)).touch()
    except OSError:
        pytest.skip("this disk takes UTF-8 names alone")
    found = find_files(tmp_path, [GBK])
    assert os.fsencode(found.files[GBK]) == file and found.names == {GBK: "照片_1.png"}


def test_messages(tmp_path: Path) -> None:
    model = Path("images.txt")
    found = _find(tmp_path, ["x.png"], ["a.png"])
    fault, remedy = found.describe_missing(["a.png"], 3, model)
    assert fault == f"1 of 3 images that images.txt lists are not in {tmp_path} (a.png), which holds x.png instead"
    assert "copy them there, rename the files as in images.txt" in remedy
    found = _find(tmp_path, ["b/a.png", "c/a.png"], ["a.png"])
    fault, remedy = found.describe_missing(["a.png"], 3, model)
    assert fault.endswith("(a.png), and several files fit a.png (b/a.png, c/a.png)") and "keep only" in remedy
    fault, remedy = find_files(tmp_path, [GBK]).describe_missing([GBK], 1, model)
    assert "not UTF-8" in fault and remedy.startswith("rename the photos with plain letters")


def test_a_link_that_leads_back_ends_the_search(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/up").symlink_to(tmp_path, target_is_directory=True)
    assert _paths(_find(tmp_path, ["sub/a.PNG"], ["a.png"])) == {"a.png": "sub/a.PNG"}


def test_names_that_no_disk_takes_are_missing(tmp_path: Path) -> None:
    names = ["x" * 300 + ".png", "a\0.png", "\ud800.png", "", "..", "/"]
    assert find_files(tmp_path, names).files == {}


def test_paths_that_lead_out() -> None:
    assert all(map(leads_out, ("../a", "x/../../a", "/etc/a", "..\\a", "C:\\a", "C:/a", "\\\\server\\a")))
    assert not any(map(leads_out, ("a", "x/a..b", "x\\a", "..a/b", "C:a")))
    assert spelling("./Sub\\K%C3%BCche.PNG") == spelling(unicodedata.normalize("NFD", "sub/küche.png"))

"""Finds the file of each image name, also under another spelling.

A scene often moves from one computer, program or file system to another: ``IMG_1.JPG`` becomes ``img_1.jpg``,
``a\\b.png`` stands for ``a/b.png``, umlauts are composed or decomposed, and paths are those of another computer. A name
takes a file under another spelling only if exactly one file fits, and no other name takes that file.
"""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from gs_train.errors import UserError, first_few
from gs_train.scene.photos.files import SUFFIXES

_ENCODINGS = (
    *("gb18030", "cp949", "cp932", "cp950", "euc_jp", "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255"),
    *("cp1256", "cp1257", "cp1258", "cp874", "koi8_r", "cp850", "cp437", "cp866", "mac_roman", "latin_1"),
)
"""Code pages of Windows, DOS and older systems, tried in this order on names that are not UTF-8."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_ENDING = re.compile(r"\.[a-z][a-z0-9]{1,4}$")
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
_PREFERRED_FOLDER = "images"


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundFiles:
    """The result of ``find_files``. All mappings have names as keys, as ``find_files`` received them."""

    folder: Path
    """The folder searched."""
    files: Mapping[str, Path]
    """The file of each name that has one."""
    names: Mapping[str, str]
    """The name to show and to sort by, for each name that has a file: with ``/`` between folders, as proper text, and
    inside the folder."""
    respelled: tuple[tuple[str, str], ...] = ()
    """(name, path of its file in the folder) of the names whose file is spelled otherwise."""
    encoding: str | None = None
    """The encoding of the names, if they are not UTF-8 and files fit them in this encoding."""
    several: Mapping[str, tuple[str, ...]]
    """Paths of the files that fit a name equally well, for names without a file."""
    others: tuple[str, ...] = ()
    """Paths of files that no name takes; empty if every name has a file of its spelling."""

    def notice(self, listed_in: Path) -> list[str]:
        """Sentences about the names that ``listed_in`` spells otherwise; empty without one."""
        notices = []
        if self.encoding is not None:
            fit = f"they fit the files in {self.folder} as {self.encoding}"
            notices.append(f"The names in {listed_in} are not UTF-8 text: {fit}.")
        if not self.respelled:
            return notices
        name, path = self.respelled[0]
        if unicodedata.normalize("NFC", path) == unicodedata.normalize("NFC", name):
            name, path = ascii(name), ascii(path)  # Composed and decomposed letters look alike.
        count = f"{len(self.respelled)} names in {listed_in}"
        example = f"{name} is {path} there"
        return [*notices, f"{count} are spelled otherwise than their files in {self.folder} ({example})."]

    def describe_missing(self, missing: Sequence[str], total: int, listed_in: Path) -> tuple[str, str]:
        """The fault of names without a file, and its remedy.

        Args:
            missing: the names, at least one.
            total: number of all names.
            listed_in: the file that lists the names.
        """
        count = f"{len(missing)} of {total} images that {listed_in} lists are not in {self.folder}"
        message = f"{count} ({first_few(missing)})"
        if any(_SURROGATE.search(name) for name in missing):
            remedy = "rename the photos with plain letters and digits and run the reconstruction again"
            return f"{message}, and the names are not UTF-8 text", remedy
        several = next((name for name in missing if name in self.several), None)
        if several is not None:
            files = first_few(self.several[several])
            return f"{message}, and several files fit {several} ({files})", "keep only the right file there"
        if not self.others:
            return message, "copy them there"
        instead = f"{message}, which holds {first_few(self.others)} instead"
        return instead, f"copy them there, rename the files as in {listed_in.name}"


def find_files(
    folder: Path, names: Sequence[str], *, suffixes: Collection[str] = SUFFIXES, allow_outside: bool = False
) -> FoundFiles:
    """Find the files of ``names`` in ``folder`` and its sub-folders.

    A file of exactly the name comes first. Of the others the longest common end of both paths decides, then an equal
    file ending, then the folder ``images``. Upper and lower case, composed and decomposed letters, ``\\`` and ``/``,
    and characters written as %20 count as equal, and so do all file endings.

    Args:
        folder: an existing folder.
        names: paths inside the folder, or of another computer. A name that is not UTF-8 holds its bytes as surrogates
            (``surrogateescape``).
        suffixes: lower-case endings of the files that a name may take under another spelling.
        allow_outside: also accept names that lead out of the folder to an existing file.

    Raises:
        UserError: the folder cannot be read.
    """
    files, shown = {}, {}
    for name in dict.fromkeys(names):
        if not _SURROGATE.search(name) and (allow_outside or not leads_out(name)) and on_disk(folder / name):
            files[name], shown[name] = folder / name, name
    missing = [name for name in dict.fromkeys(names) if name not in files]
    if not missing:
        return FoundFiles(folder=folder, files=files, names=shown, several={})
    taken = {os.path.normpath(file) for file in files.values()}
    candidates = [path for path in _list_files(folder, suffixes) if os.path.normpath(folder / path) not in taken]
    texts, matches, encoding = _best_matches(missing, candidates)
    users = Counter(paths[0] for paths in matches.values() if len(paths) == 1)
    respelled, several = [], {}
    for name, paths in matches.items():
        if len(paths) > 1:
            several[name] = tuple(paths)
        elif users[paths[0]] == 1:
            files[name] = folder / paths[0]
            text = os.fsencode(paths[0]).decode(errors="backslashreplace") if leads_out(name) else texts[name]
            shown[name] = PurePosixPath(text.replace("\\", "/")).as_posix()
            respelled.append((texts[name], paths[0]))
    used = {path for _, path in respelled}
    respelled = [(text, path) for text, path in respelled if text != path]
    return FoundFiles(
        folder=folder,
        files=files,
        names=shown,
        respelled=tuple(respelled),
        encoding=encoding,
        several=several,
        others=tuple(path for path in candidates if path not in used),
    )


def on_disk(file: Path) -> bool:
    """Whether the file exists. A file whose name is too long for the disk does not.

    Raises:
        UserError: the disk or the permissions do not tell.
    """
    try:
        return file.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions and the disk.") from error


def leads_out(name: str) -> bool:
    """Whether a name is an absolute path, of this or another computer, or contains ``..``."""
    return name.startswith(("/", "\\")) or _DRIVE.match(name) is not None or ".." in re.split(r"[/\\]", name)


def spelling(path: str) -> str:
    """``path`` in a spelling that paths share which differ at most in case, in composed letters, in ``\\`` and ``/`` or
    in characters written as %20."""
    return "/".join(_parts(path))


def folder_alike(parent: Path, name: str) -> Path:
    """The folder ``name`` in ``parent``, or the only folder whose name differs from it in case alone."""
    folder = parent / name
    if folder.is_dir() or not parent.is_dir():
        return folder
    alike = [other for other in parent.iterdir() if spelling(other.name) == spelling(name) and other.is_dir()]
    return alike[0] if len(alike) == 1 else folder


# ---- matching


_Matches = tuple[dict[str, str], dict[str, list[str]], str | None]


def _best_matches(names: Sequence[str], paths: Sequence[str]) -> _Matches:
    """The text of each name, the paths that fit it under the encoding that finds the most files, and the encoding, None
    for UTF-8."""
    is_utf8 = not any(_SURROGATE.search(name) for name in names)
    as_given = {name: name for name in names}
    best: _Matches = as_given, _matches(as_given, {path: path for path in paths}) if is_utf8 else {}, None
    for encoding in () if all(map(str.isascii, names)) else _ENCODINGS:
        if len(best[1]) == len(names):
            break
        texts = {name: text for name in names if (text := _decoded(name, encoding)) is not None}
        if len(texts) < len(names):
            continue
        # A file of an old archive may have a name of the same encoding.
        readable = {path: _decoded(path, encoding) if _SURROGATE.search(path) else path for path in paths}
        found = _matches(texts, {path: text for path, text in readable.items() if text is not None})
        if len(found) > len(best[1]):
            best = (as_given, found, None) if is_utf8 else (texts, found, encoding)
    return best


def _decoded(name: str, encoding: str) -> str | None:
    """The bytes of a name read in another encoding; None if they are not text in it."""
    try:
        return name.encode("utf-8", "surrogateescape").decode(encoding)
    except UnicodeError:
        return None


def _matches(texts: Mapping[str, str], paths: Mapping[str, str]) -> dict[str, list[str]]:
    """The paths that fit each name best. Both mappings give texts by the original spelling."""
    index: dict[str, list[tuple[str, list[str], str]]] = {}
    for path, text in paths.items():
        *folders, last = _parts(text)
        stem, ending = os.path.splitext(last)
        index.setdefault(stem, []).append((path, folders, ending))
    found = {}
    for name, text in texts.items():
        *folders, last = _parts(text) or [""]
        scores: dict[str, tuple[int, int, bool]] = {}
        for stem, ending in _stems(last):
            for path, path_folders, path_ending in index.get(stem, []):
                common = _common_end(folders, path_folders)
                # The folders that differ are those of another computer, or one path has more of them.
                if leads_out(name) or common in (len(folders), len(path_folders)):
                    is_preferred = path_folders[:1] == [_PREFERRED_FOLDER]
                    scores[path] = (common, 2 if ending == path_ending else int(not ending), is_preferred)
        if scores:
            best = max(scores.values())
            found[name] = [path for path, score in scores.items() if score == best]
    return found


def _stems(last: str) -> Iterator[tuple[str, str]]:
    """The ways to part a file name into stem and ending: with its ending, and without one."""
    ending = _ENDING.search(last)
    if ending is not None:
        yield last[: ending.start()], ending[0]
    yield last, ""


def _common_end(folders: Sequence[str], others: Sequence[str]) -> int:
    """Number of equal folders at the end of two paths."""
    pairs = zip(reversed(folders), reversed(others), strict=False)
    return next((count for count, (one, other) in enumerate(pairs) if one != other), min(len(folders), len(others)))


def _parts(path: str) -> list[str]:
    """The parts of a path after its last ``..``, in a spelling that similar names share."""
    parts = [part for part in re.split(r"[/\\]", path) if part not in ("", ".")]
    last_up = max((place for place, part in enumerate(parts) if part == ".."), default=-1)
    return [_key(part) for part in parts[last_up + 1 :]]


def _key(part: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", unquote(part)).casefold()).strip()


def _list_files(folder: Path, suffixes: Collection[str]) -> list[str]:
    """Paths in ``folder``, with ``/`` between folders, of the files with one of the endings; sorted, without hidden
    files."""
    found: list[str] = []
    visited: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        # A link may lead back to a folder above it.
        folders[:] = [] if real in visited else sorted(name for name in folders if not name.startswith("."))
        if real not in visited:
            start = Path(place).relative_to(folder)
            names = (name for name in sorted(files) if not name.startswith("."))
            found += [(start / name).as_posix() for name in names if os.path.splitext(name)[1].lower() in suffixes]
        visited.add(real)
    return found

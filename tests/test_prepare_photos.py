"""The photos of a prepared scene: upright copies, names, camera groups, and the sharpest frames of a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from gs_train.errors import UserError
from gs_train.prepare.photos import (
    camera_groups,
    choose_sharpest,
    copy_photos,
    extract_frames,
    list_photos,
    sharpness,
    stored_names,
)


def _noise(seed: int, height: int = 30, width: int = 40) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_photos_become_upright_and_keep_the_exif_focal_length(tmp_path: Path) -> None:
    seen = np.zeros((40, 60, 3), np.uint8)
    seen[:20, :30] = (250, 10, 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side, displayed after a clockwise turn of 90 degrees
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0xA405] = 28
    stored = Image.fromarray(seen).transpose(Image.Transpose.ROTATE_90)
    plain = tmp_path / "plain.jpg"
    Image.fromarray(seen).save(plain, quality=60)
    sources = [tmp_path / name for name in ("turned.jpg", "turned.png", "turned.webp")]
    for source in sources:
        stored.save(source, exif=exif, quality=95)
    targets = [tmp_path / "out" / name for name in stored_names([plain, *sources], tmp_path)]
    done: list[int] = []
    copy_photos([plain, *sources], targets, done.append)
    assert done == [1, 2, 3, 4]
    assert targets[0].read_bytes() == plain.read_bytes(), "an upright photo is copied byte for byte"
    assert [target.name for target in targets[1:]] == ["turned.jpg", "turned.png", "turned.webp.png"]
    for target in targets[1:]:
        with Image.open(target) as image:
            assert image.format == ("JPEG" if target.suffix == ".jpg" else "PNG")
            assert image.size == (60, 40)
            # The mean, because JPEG and WebP blur colours across edges.
            assert np.abs(np.asarray(image.convert("RGB"), int) - seen).mean() < 2
            assert 0x0112 not in image.getexif()
            assert image.getexif().get_ifd(0x8769)[0xA405] == 28
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(target.name for target in targets)


def test_one_camera_for_all_photos_of_one_size_and_lens(tmp_path: Path) -> None:
    def photo(name: str, focal_length: int | None, size: tuple[int, int] = (40, 30)) -> str:
        exif = Image.Exif()
        if focal_length is not None:
            exif.get_ifd(0x8769)[0xA405] = focal_length
        Image.new("RGB", size).save(tmp_path / name, exif=exif)
        return name

    same, zoomed, upright = [photo("a.jpg", 28), photo("d.jpg", 28)], photo("b.jpg", 50), photo("c.jpg", 28, (30, 40))
    bare = [photo("e.png", None), photo("f.png", None)]
    assert camera_groups(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.png", "f.png"]) == [
        same,
        [zoomed],
        [upright],
        bare,
    ]


def test_names_have_no_white_space_and_do_not_collide(tmp_path: Path) -> None:
    names = ["a b.jpg", "a_b.JPG", "a#b.jpg", "sub dir/a b.jpg", "x.webp", "日本 é.png", "latin \udce4.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    photos, others = list_photos(tmp_path)
    assert others == []
    stored = dict(
        zip((photo.relative_to(tmp_path).as_posix() for photo in photos), stored_names(photos, tmp_path), strict=True)
    )
    assert stored == {
        "a b.jpg": "a_b.jpg",
        "a#b.jpg": "a_b_2.jpg",
        "a_b.JPG": "a_b_3.JPG",
        "sub dir/a b.jpg": "sub_dir/a_b.jpg",
        "x.webp": "x.webp.png",
        "日本 é.png": "日本_é.png",
        "latin \udce4.png": "latin_.png",
    }


def test_existing_copies_stay(tmp_path: Path) -> None:
    photo, target = tmp_path / "a.png", tmp_path / "out.png"
    Image.fromarray(_noise(0)).save(photo)
    target.write_bytes(b"made before")
    copy_photos([photo], [target], lambda done: None)
    assert target.read_bytes() == b"made before"


# ---- frames


def test_the_sharpest_frame_of_each_part_is_chosen() -> None:
    sharp = {1, 5, 8, 10}
    frames = [_noise(i, 48, 64) if i in sharp else _blurred(_noise(i, 48, 64)) for i in range(12)]
    chosen = list(choose_sharpest(iter(frames), 12, 4))
    assert [index for index, _ in chosen] == sorted(sharp)
    assert all(frame is frames[index] for index, frame in chosen)


def test_frames_beyond_a_wrong_count_are_kept() -> None:
    frames = [_noise(i) for i in range(10)]
    assert len(list(choose_sharpest(iter(frames), 6, 3))) == 3, "more frames than announced go to the last part"
    assert len(list(choose_sharpest(iter(frames), 20, 4))) == 2
    assert [index for index, _ in choose_sharpest(iter(frames[:3]), 3, 50)] == [0, 1, 2], "no more parts than frames"
    assert list(choose_sharpest(iter(()), 0, 5)) == []


def test_sharpness_sees_blur_at_any_size() -> None:
    for height, width in ((30, 40), (1500, 2001)):
        # At 2001 px the score uses the image at half size, so the texture is coarser.
        coarse = np.repeat(np.repeat(_noise(1, height // 10, width // 10), 10, axis=0), 10, axis=1)
        scores = [
            sharpness(np.asarray(Image.fromarray(coarse).filter(ImageFilter.GaussianBlur(radius))))
            for radius in (0, 2, 5)
        ]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > 2 * scores[1] > 4 * scores[2]


def _blurred(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)))


def test_a_video_that_ffmpeg_cannot_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra video (imageio-ffmpeg)")
    video = tmp_path / "video.mp4"
    video.write_text("no video")
    with pytest.raises(UserError, match=r"video\.mp4 cannot be read as a video \(.+\): give a file that ffmpeg plays"):
        extract_frames(video, tmp_path, 5, lambda done, total: None)

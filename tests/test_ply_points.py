"""Sparse points of a transforms scene in a PLY file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData, PlyElement
from transforms_files import document, ply_vertices, write

from gs_train.scene.load import SceneConfig, load_scene
from gs_train.scene.readers.ply_points import find_points, read_ply_points

ALL = SceneConfig(test_every=0)


@pytest.mark.parametrize(
    ("colours", "rgb"),
    [(("u1", [(1, 2, 255)]), (1, 2, 255)), (("f4", [(0.0, 0.5, 1.5)]), (0, 128, 255)), (None, (128, 128, 128))],
)
@pytest.mark.parametrize("text", [True, False])
def test_positions_and_colours(
    tmp_path: Path, colours: tuple[str, list[tuple[float, ...]]] | None, rgb: tuple[int, ...], text: bool
) -> None:
    PlyData([ply_vertices([(0.5, 0.25, -1.0)], colours)], text=text).write(str(tmp_path / "sparse.ply"))
    scene = load_scene(write(tmp_path, document(ply_file_path="sparse.ply")).parent, ALL)
    np.testing.assert_array_equal(scene.points.xyz, [(0.5, 0.25, -1.0)])
    np.testing.assert_array_equal(scene.points.rgb, [rgb])
    assert scene.notices == ()


COLOURS = np.array([(0, 0, 0), (255, 128, 3), (40, 50, 60), (90, 200, 255)])


@pytest.mark.parametrize(
    ("white", "kind"),
    [(255, "u1"), (65535, "u2"), (255, "u2"), (255, "i4"), (65535, "u4"), (1, "f4"), (255, "f4"), (65535, "f8")],
)
@pytest.mark.parametrize(
    "names", ["red green blue", "r g b", "diffuse_red diffuse_green diffuse_blue", "Red Green Blue"]
)
def test_colours_of_other_programs(tmp_path: Path, white: int, kind: str, names: str) -> None:
    rows = np.zeros(len(COLOURS), [*((axis, "f4") for axis in "xyz"), *((name, kind) for name in names.split())])
    for name, values in zip(names.split(), COLOURS.T, strict=True):
        rows[name] = values * (white / 255) if kind[0] == "f" else np.round(values * (white / 255))
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(tmp_path / "points.ply"))
    points = read_ply_points(tmp_path / "points.ply", "", "")
    np.testing.assert_array_equal(points.rgb, COLOURS)


def test_missing_and_bright_colours(tmp_path: Path) -> None:
    """A few values above white, or values that are not finite, change nothing in the others."""
    colours = np.linspace(0, 1, 900, dtype=np.float32).reshape(300, 3)
    expected = np.round(colours * 255).astype(int)
    colours[7], expected[7] = (9.0, np.nan, np.inf), (255, 0, 0)
    xyz = [(float(number), 0.0, 0.0) for number in range(300)]
    PlyData([ply_vertices(xyz, ("f4", colours.tolist()))]).write(str(tmp_path / "points.ply"))
    np.testing.assert_array_equal(read_ply_points(tmp_path / "points.ply", "", "").rgb, expected)


def test_the_colours_of_a_splat_do_not_count(tmp_path: Path) -> None:
    rows = np.ones(5, [(name, "f4") for name in ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0")])
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(tmp_path / "point_cloud.ply"))
    assert (read_ply_points(tmp_path / "point_cloud.ply", "", "").rgb == 128).all()
    ply, notices = find_points((tmp_path,), "points3D.ply")
    assert ply is None and "is a splat and not a point cloud" in notices[0]


@pytest.mark.parametrize(
    "name", ["sparse_pc.ply", "sparse_points.ply", "points3d.ply", "points3D.PLY", "pointcloud.ply", "point_cloud.ply"]
)
def test_points_with_a_usual_name_are_found(tmp_path: Path, name: str) -> None:
    PlyData([ply_vertices([(0.5, 0.25, -1.0)], None)]).write(str(tmp_path / name))
    scene = load_scene(write(tmp_path, document()).parent, ALL)
    np.testing.assert_array_equal(scene.points.xyz, [(0.5, 0.25, -1.0)])
    assert len(scene.notices) == 1 and f"{name} lies beside it: training starts from it." in scene.notices[0]


def test_the_first_of_several_usual_names(tmp_path: Path) -> None:
    for number, name in enumerate(("points3D.ply", "pointcloud.ply", "other.ply")):
        PlyData([ply_vertices([(float(number), 0.25, -1.0)], None)]).write(str(tmp_path / name))
    scene = load_scene(write(tmp_path, document()).parent, ALL)
    assert scene.points.xyz[0, 0] == 0.0
    assert scene.notices[1] == f"{tmp_path / 'points3D.ply'} is used, not {tmp_path / 'pointcloud.ply'}."


@pytest.mark.parametrize("path", ["points/cloud.ply", "C:\\scene\\points\\cloud.ply", "/home/me/points/Cloud.ply"])
def test_the_path_of_another_computer(tmp_path: Path, path: str) -> None:
    (tmp_path / "points").mkdir()
    PlyData([ply_vertices([(0.5, 0.25, -1.0)], None)]).write(str(tmp_path / "points/cloud.ply"))
    PlyData([ply_vertices([(9.0, 9.0, 9.0)], None)]).write(str(tmp_path / "sparse_pc.ply"))
    scene = load_scene(write(tmp_path, document(ply_file_path=path)).parent, ALL)
    np.testing.assert_array_equal(scene.points.xyz, [(0.5, 0.25, -1.0)])
    assert len(scene.notices) == (path[0] != "p")

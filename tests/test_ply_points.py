"""Sparse points of a transforms scene in a PLY file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData
from transforms_files import document, ply_vertices, write

from gs_train.scene.load import SceneConfig, load_scene

ALL = SceneConfig(test_every=0)


@pytest.mark.parametrize(
    ("colours", "rgb"),
    [(("u1", [(1, 2, 255)]), (1, 2, 255)), (("f4", [(0.0, 0.5, 1.5)]), (0, 128, 255)), (None, (128, 128, 128))],
)
@pytest.mark.parametrize("text", [True, False])
def testply_vertices(
    tmp_path: Path, colours: tuple[str, list[tuple[float, ...]]] | None, rgb: tuple[int, ...], text: bool
) -> None:
    PlyData([ply_vertices([(0.5, 0.25, -1.0)], colours)], text=text).write(str(tmp_path / "sparse.ply"))
    scene = load_scene(write(tmp_path, document(ply_file_path="sparse.ply")).parent, ALL)
    np.testing.assert_array_equal(scene.points.xyz, [(0.5, 0.25, -1.0)])
    np.testing.assert_array_equal(scene.points.rgb, [rgb])
    assert scene.notices == ()


def test_points_with_a_usual_name_are_found(tmp_path: Path) -> None:
    PlyData([ply_vertices([(0.5, 0.25, -1.0)], None)]).write(str(tmp_path / "sparse_pc.ply"))
    scene = load_scene(write(tmp_path, document()).parent, ALL)
    np.testing.assert_array_equal(scene.points.xyz, [(0.5, 0.25, -1.0)])
    assert len(scene.notices) == 1 and "sparse_pc.ply" in scene.notices[0]

"""Read a splat, change it, and write it: keep a sphere around its centre, and brighten its base colour.

    python examples/06_edit_splat.py splat.ply cropped.ply 2.0 0.1

The arguments after the files are the radius in world units and the brightness to add (0 to 1).
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from gs_train import read_splat, write_splat

SH_C0 = 0.28209479177387814
"""colour = 0.5 + SH_C0 * f_dc"""


def main(source: str, target: str, radius: str, brightness: str = "0.0") -> None:
    splat = read_splat(Path(source))
    distance = np.linalg.norm(splat.xyz - np.median(splat.xyz, axis=0), axis=1)
    inside = distance <= float(radius)
    changed = replace(
        splat,
        xyz=splat.xyz[inside],
        f_dc=splat.f_dc[inside] + np.float32(float(brightness) / SH_C0),
        f_rest=splat.f_rest[inside],
        opacity=splat.opacity[inside],
        scaling=splat.scaling[inside],
        rotation=splat.rotation[inside],
    )
    write_splat(Path(target), changed)
    print(f"{len(changed):,} of {len(splat):,} Gaussians: {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])

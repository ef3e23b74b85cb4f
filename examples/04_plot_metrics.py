"""Plot the metrics.jsonl of one or more runs: PSNR of the training views and number of Gaussians. Needs the extra
"plots".

python examples/04_plot_metrics.py plot.png runs/example runs/controller
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def main(picture: str, *runs: str) -> None:
    figure, (quality, size) = pyplot.subplots(2, sharex=True, figsize=(8, 6))
    for run in runs:
        lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
        iterations = [line["iteration"] for line in lines]
        quality.plot(iterations, [line["psnr"] for line in lines], linewidth=0.8, label=Path(run).name)
        size.plot(iterations, [line["gaussians"] for line in lines])
    quality.set(ylabel="PSNR of the training view, dB")
    quality.legend()
    size.set(xlabel="iteration", ylabel="Gaussians")
    for axes in (quality, size):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture)
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])

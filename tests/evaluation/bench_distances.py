"""Time HD95, ASSD and NSD against MedPy's hd95 and assd (which together give no NSD) at 512 x 512.

Run by hand: python tests/evaluation/bench_distances.py    Exit 1 where a mask is below 5 times, 2 without MedPy.
"""

import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from emit.evaluation.metrics import score_boundary

SIDE, ROUNDS, SPACING = 512, 15, (0.5, 0.7)


def draw_ellipse(centre, radii):
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1


PAIRS = {
    "lesion (1 % of the image)": (draw_ellipse((250, 250), (25, 35)), draw_ellipse((253, 246), (28, 30))),
    "organ (15 %)": (draw_ellipse((250, 250), (120, 100)), draw_ellipse((255, 265), (110, 110))),
    "whole image (75 %)": (draw_ellipse((256, 256), (250, 250)), draw_ellipse((250, 256), (240, 245))),
    "lesion and far false alarm": (
        draw_ellipse((60, 60), (30, 30)),
        draw_ellipse((62, 58), (30, 28)) | draw_ellipse((450, 470), (9, 9)),
    ),
}


def time_call(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main():
    try:
        from medpy.metric.binary import assd, hd95
    except ImportError:
        print("MedPy is not installed: pip install medpy", file=sys.stderr)
        sys.exit(2)

    def run_medpy(a, b):
        return {"hd95": hd95(a, b, SPACING), "assd": assd(a, b, SPACING)}

    slowest = float("inf")
    for name, (a, b) in PAIRS.items():
        ours = score_boundary(a, b, SPACING, 1.0)
        theirs = run_medpy(a, b)
        assert all(abs(ours[key] - theirs[key]) < 1e-9 for key in theirs), (ours, theirs)
        rounds = [(time_call(run_medpy, a, b), time_call(score_boundary, a, b, SPACING, 1.0)) for _ in range(ROUNDS)]
        ratios = sorted(medpy / emit for medpy, emit in rounds)
        times = [1e3 * median(column) for column in zip(*rounds, strict=True)]
        print(
            f"{name:28s} MedPy {times[0]:7.2f} ms, ours {times[1]:6.2f} ms: {median(ratios):5.1f} times "
            f"({ratios[0]:.1f} to {ratios[-1]:.1f})"
        )
        slowest = min(slowest, median(ratios))
    sys.exit(int(slowest < 5))


if __name__ == "__main__":
    main()

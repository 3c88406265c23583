"""Weighted nearest neighbors of 10,000 among 50,000 features of width 384: ours beside scikit-learn's.

    python benchmarks/knn.py
    python benchmarks/knn.py rounds=15 threads=2 save=benchmarks/results/knn.json
    python benchmarks/knn.py peer=false                 # ours alone, to see its memory

Features are Gaussian clouds of 1,000 classes, float32. Ours votes with k of 10, 20, 100 and 200 in one go; scikit-learn
(brute force, cosine) finds the 200 nearest once, and its time is that search alone. Both find the same neighbors: the
mean similarity of the 200 must agree to 1e-5. They take turns, the order turns with the rounds. Printed as JSON:
seconds, median and quartiles of peer time / our time (above 1 we are faster), and the most memory that the process ever
held, in MB: that of ours, data and torch included, where peer=false. Processor seconds are summed over the threads, and
tell where other work disturbed a round.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch.nn.functional import normalize

from vitral.config import parse_yaml, split_words
from vitral.evaluate import knn as module
from vitral.evaluate.config import KnnConfig
from vitral.evaluate.features import Embedded
from vitral.evaluate.knn import knn
from vitral.version import __version__

TRAIN, JUDGED, WIDTH, CLASSES, MOST = 50_000, 10_000, 384, 1000, 200


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options: dict[str, Any] = {"rounds": 3, "threads": 2, "peer": True, "save": None}
    options |= {key: parse_yaml(value) for key, value in pairs.items()}
    torch.set_num_threads(options["threads"])
    with threadpool_limits(options["threads"]):
        found = measure(options["rounds"], options["peer"])
    found = {"environment": environment(options["peer"]), **found}
    if options["save"]:
        Path(options["save"]).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))


def measure(rounds: int, peer: bool) -> dict[str, Any]:
    """Seconds of every contestant, each in turn."""
    train, evaluated = features()
    runs: dict[str, Callable[[], object]] = {"vitral": lambda: dict(knn(train, evaluated, CLASSES, KnnConfig()))}
    if peer:
        runs["scikit-learn"] = neighbors(train, evaluated)
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    processor_seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start, start_processor = time.perf_counter(), time.process_time()
            runs[name]()
            seconds[name].append(round(time.perf_counter() - start, 2))
            processor_seconds[name].append(round(time.process_time() - start_processor, 2))
    # Linux gives kilobytes, macOS bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "rounds": rounds, "seconds": seconds, "processor_seconds": processor_seconds,
        "ratio_quartiles": quartiles(seconds), "processor_ratio_quartiles": quartiles(processor_seconds),
        "peak_mb": round(peak),
    }  # fmt: skip


def quartiles(seconds: dict[str, list[float]]) -> list[float] | None:
    """Of peer time / our time over the rounds, where there is a peer and more than one round."""
    if "scikit-learn" not in seconds or len(seconds["vitral"]) < 2:
        return None
    ratios = [theirs / ours for theirs, ours in zip(seconds["scikit-learn"], seconds["vitral"], strict=True)]
    return [round(q, 2) for q in statistics.quantiles(ratios, n=4)]


def features() -> tuple[Embedded, Embedded]:
    """The train and the evaluated samples."""
    torch.manual_seed(0)
    centers_CD = torch.randn(CLASSES, WIDTH)
    parts: list[Embedded] = []
    for count in (TRAIN, JUDGED):
        labels_N = torch.randint(0, CLASSES, (count,))
        parts.append(Embedded(centers_CD[labels_N] + 4 * torch.randn(count, WIDTH), labels_N))
    return parts[0], parts[1]


def neighbors(train: Embedded, evaluated: Embedded) -> Callable[[], object]:
    """scikit-learn's search, after a check that it finds what ours does."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=MOST, algorithm="brute", metric="cosine").fit(train.features_ND.numpy())
    queries_BD = evaluated.features_ND[:100]
    distance_BK, _ = search.kneighbors(queries_BD.numpy())
    ours_BK, _ = module._nearest(normalize(queries_BD, dim=1), normalize(train.features_ND, dim=1), MOST)
    assert abs((1 - distance_BK).mean() - ours_BK.mean().item()) < 1e-5
    return lambda: search.kneighbors(evaluated.features_ND.numpy())


def environment(peer: bool) -> dict[str, Any]:
    """Versions and machine."""
    versions = {"vitral": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    if peer:
        import sklearn

        versions["scikit-learn"] = sklearn.__version__
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    processor = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return {**versions, "processor": processor, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    main()

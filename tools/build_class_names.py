"""Build src/vitral/weights/imagenet.txt.gz from timm's synset lists: python tools/build_class_names.py

One line per synset, sorted: its number, the lists that contain it, its names in WordNet 3.0. Lists:
k ImageNet-1k (1,000), g ImageNet-21k as Google trained on (21,843), w ImageNet-21k of fall 2011 (21,841). Each list is
sorted by number, so the lines preserve its order.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

LISTS = {"k": "imagenet_synsets.txt", "g": "imagenet21k_goog_synsets.txt", "w": "imagenet22k_synsets.txt"}
TARGET = Path(__file__).parents[1] / "src" / "vitral" / "weights" / "imagenet.txt.gz"


def main() -> None:
    """Write the file, with equal bytes on every run."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None, "pip install timm"
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data" / "_info"
    lists = {mark: (folder / name).read_text(encoding="utf-8").split() for mark, name in LISTS.items()}
    assert all(synsets == sorted(set(synsets)) for synsets in lists.values())
    members = {mark: set(synsets) for mark, synsets in lists.items()}
    rows = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    names = dict(row.split("\t") for row in rows)
    lines = [
        f"{synset}\t{''.join(mark for mark in LISTS if synset in members[mark])}\t{names[synset]}"
        for synset in sorted(set().union(*members.values()))
    ]
    TARGET.write_bytes(gzip.compress("\n".join(lines).encode(), 9, mtime=0))
    print(f"{TARGET}: {len(lines):,} synsets, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

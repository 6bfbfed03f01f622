"""Photographs -> checked, grouped, split and resized to one uint8 store.

Reads the folder `data.source`, in it `data.table`, `data.exclude` and `data.groups`, and beside it `data.label_fixes`.
Writes data/processed/{images.npy,manifest.csv,rejected.csv}, metrics/data.json and plots/{rejected,duplicates,crops}.png.
Keeps decoded pictures in .cache/preprocess, which may be deleted at any time.
"""

import json
import os
from pathlib import Path

from threadpoolctl import threadpool_limits

from stages.core.errors import run
from stages.core.params import load_params
from stages.photographs.contact_sheets import draw_crops, draw_duplicates, draw_rejected
from stages.photographs.dataset_writer import open_pixel_spool, write_rejected, write_store
from stages.photographs.groups import find_duplicates, find_label_conflicts, group, rows_to_drop
from stages.photographs.inventory import check_invalid_fraction, check_no_class_lost, describe, summarize
from stages.photographs.listing import list_images
from stages.photographs.reading import decode_all, parallel_map
from stages.photographs.splits import LEAK, assign_splits
from stages.tracking.stage_logging import log_stage

OUT, METRICS, PLOTS = Path("data/processed"), Path("metrics/data.json"), Path("plots")


def main() -> dict:
    """Run the stage; returns what it wrote to metrics/data.json."""
    p = load_params("seed", "data", "runtime")
    listing = list_images(p.data)
    cache = Path(os.environ.get("DVC_ROOT", ".")) / ".cache" / "preprocess"

    # One thread in this process, too: the order in which a sum is taken must not depend on the number of cores.
    with open_pixel_spool(OUT) as spool, parallel_map(p.runtime.workers) as map_, threadpool_limits(1):
        decoded = decode_all(listing.photographs, p.data, spool, map_, cache)
        rejected = listing.rejected | decoded.rejected
        write_rejected(OUT, rejected)  # now, so that it can be read when there are too many
        check_invalid_fraction(rejected, len(decoded.listed), p.data.max_rejected)
        check_no_class_lost(listing.photographs, decoded.listed)

        listed = decoded.listed
        links = find_duplicates(decoded.hashes, decoded.thumbnails, p.data.duplicate_similarity, map_)
        groups = group([one.path for one in listed], [one.patient for one in listed], links)
        left_out = rows_to_drop(listed, decoded.hashes, links, drop_conflicts=p.data.conflicting_labels == "drop")
        kept = [row for row in range(len(listed)) if row not in left_out]
        check_no_class_lost(listed, [listed[row] for row in kept])
        drawn = assign_splits(
            [listed[row].label for row in kept],
            [groups[row] for row in kept],
            [listed[row].split for row in kept],
            p.data.val_fraction,
            p.data.test_fraction,
            p.seed,
        )
        splits = {row: split for row, split in zip(kept, drawn, strict=True) if split != LEAK}
        left_out |= {row: "leak: in one group with a given test or validation picture" for row in kept if row not in splits}
        rejected |= {listed[row].path: reason for row, reason in left_out.items()}

        metrics = summarize(listing, decoded, links, groups, splits, rejected, p.seed)
        draw_rejected(listing, decoded, rejected, PLOTS / "rejected.png")
        draw_duplicates(decoded, links, PLOTS / "duplicates.png")
        draw_crops(decoded, list(splits), PLOTS / "crops.png")
        METRICS.parent.mkdir(parents=True, exist_ok=True)
        METRICS.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
        write_rejected(OUT, rejected)
        write_store(OUT, spool, p.data.image_size, decoded, groups, splits, find_label_conflicts(listed, links))
    print(describe(metrics))
    log_stage("preprocess", p)
    return metrics


if __name__ == "__main__":
    run(main)

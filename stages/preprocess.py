"""Validate, deduplicate, split by patient and resize the photographs: the processed dataset.

Run: python -m stages.preprocess

Reads the folder `data.source`, and the tables `data.table`, `data.exclude`, `data.groups` and
`data.label_fixes`. Writes data/processed/{images.npy,manifest.csv,rejected.csv}, metrics/data.json
and plots/{rejected,duplicates,crops}.png. Keeps decoded images in .cache/preprocess, which may be
deleted at any time.
"""

import os
import sys
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from stages.core.files import write_json
from stages.core.params import DataParams, StageParams
from stages.core.params_file import load_stage_params
from stages.core.paths import METRICS, PLOTS, PROCESSED
from stages.core.processes import only_process, run_cli
from stages.photographs.contact_sheets import (
    save_crops_sheet,
    save_duplicates_sheet,
    save_rejected_sheet,
)
from stages.photographs.dataset_writer import open_pixel_spool, write_dataset, write_rejected
from stages.photographs.groups import (
    assign_groups,
    find_duplicates,
    find_label_conflicts,
    rows_to_drop,
)
from stages.photographs.inventory import (
    check_invalid_fraction,
    check_no_class_lost,
    find_warnings,
    format_summary,
    summarize,
)
from stages.photographs.leakage import leakage_check
from stages.photographs.listing import list_images
from stages.photographs.parallel import parallel_map
from stages.photographs.reading import decode_all
from stages.photographs.splits import EXCLUDED_LEAK, assign_splits
from stages.tracking.stage_logging import log_stage


class Params(StageParams):
    """What this stage reads of params.yaml."""

    data: DataParams


def main() -> dict[str, Any]:
    """Run the stage; returns what it wrote to metrics/data.json."""
    params = load_stage_params(Params)
    data = params.data
    index = list_images(data)
    cache = Path(os.environ.get("DVC_ROOT", ".")).absolute() / ".cache" / "preprocess"
    scratch = PROCESSED.absolute()
    with (
        only_process(Path(".ckpt/preprocess.lock")),
        open_pixel_spool(PROCESSED) as spool,
        parallel_map(params.runtime.workers, params.runtime.cluster) as map_,
        # The order in which a sum is computed must not depend on the number of cores.
        threadpool_limits(1),
    ):
        decoded = decode_all(index.images, data, spool, map_, cache)
        records = decoded.records
        rejected = index.rejected | decoded.rejected
        write_rejected(PROCESSED, rejected)  # already here, for the errors that refer to it
        check_invalid_fraction(rejected, len(records), data.max_rejected)
        check_no_class_lost(index.images, records, rejected)

        pairs = find_duplicates(
            decoded.hashes, decoded.thumbnails, data.duplicate_similarity, map_, scratch
        )
        # Already here, for the error of a class that has too few groups, which refers to it.
        save_duplicates_sheet(index, decoded, pairs, PLOTS / "duplicates.png")
        groups = assign_groups(
            [record.path for record in records], [record.patient for record in records], pairs
        )
        dropped = rows_to_drop(
            records, decoded.hashes, pairs, drop_conflicts=data.conflicting_labels == "drop"
        )
        rejected |= {records[row].path: reason for row, reason in dropped.items()}
        write_rejected(PROCESSED, rejected)
        kept = [row for row in range(len(records)) if row not in dropped]
        check_no_class_lost(records, [records[row] for row in kept], rejected)
        assigned = assign_splits(
            [records[row].label for row in kept],
            [groups[row] for row in kept],
            [records[row].split for row in kept],
            data.val_fraction,
            data.test_fraction,
            params.seed,
        )
        splits = dict(zip(kept, assigned, strict=True))
        for row in kept:
            if splits[row] == EXCLUDED_LEAK:
                del splits[row]
                reason = "leak: in one group with a given test or validation image"
                rejected[records[row].path] = reason

        labels = [record.label for record in records]
        leakage = leakage_check(
            decoded.thumbnails, labels, groups, splits, params.seed, map_, scratch
        )
        metrics = summarize(index, decoded, pairs, groups, splits, rejected, leakage)
        save_rejected_sheet(index, decoded, rejected, PLOTS / "rejected.png")
        save_crops_sheet(index, decoded, list(splits), PLOTS / "crops.png")
        write_json(METRICS / "data.json", metrics)
        write_rejected(PROCESSED, rejected)
        conflicts = find_label_conflicts(records, pairs)
        write_dataset(PROCESSED, spool, data.image_size, decoded, groups, splits, conflicts)
    print(format_summary(index, metrics), flush=True)
    for warning in find_warnings(index, metrics, data):
        print(f"warning: {warning}", file=sys.stderr)
    log_stage("preprocess", params)
    return metrics


if __name__ == "__main__":
    run_cli(main)

"""From a folder of photographs to the processed dataset: list, decode, crop, group, split."""

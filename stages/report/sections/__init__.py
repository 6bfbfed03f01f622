"""The sections of the report: each brings its metrics, its plots and its texts."""

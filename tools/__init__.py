"""Commands that are no stage of the pipeline, and no dependency of one."""

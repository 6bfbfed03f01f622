"""What attack_eval measures, in this order: some read what others before them returned.

A new measurement costs its file and a line here, its section in the report the same on that side.
"""

from stages.measurements import (
    attack_checks,
    calibration,
    corruptions,
    examples,
    gradients,
    minimum_eps,
    model_checks,
    prediction_sets,
    second_norm,
    smoothing,
    suite,
    transfer,
    universal,
)

MEASUREMENTS = (
    universal.MEASUREMENT,
    suite.MEASUREMENT,
    calibration.MEASUREMENT,
    prediction_sets.MEASUREMENT,
    minimum_eps.MEASUREMENT,
    corruptions.MEASUREMENT,
    gradients.MEASUREMENT,
    model_checks.MEASUREMENT,
    attack_checks.MEASUREMENT,
    transfer.MEASUREMENT,
    second_norm.MEASUREMENT,
    smoothing.MEASUREMENT,
    examples.MEASUREMENT,
)

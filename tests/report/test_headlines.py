"""What a run is told in: it must not praise a model that learned nothing."""

from dataclasses import replace

import pytest

from stages.report.headlines import verdict


@pytest.mark.parametrize(
    ("clean_low", "adv_low", "words", "absent"),
    [
        (0.9, 0.8, ["to 12.3%", "keeps 45.6%"], ["always answering"]),
        (0.9, 0.1, ["to 12.3%", "fine-tuned one is not better than always"], ["45.6%"]),
        (0.1, 0.8, ["standard model is not better", "keeps 45.6%"], ["12.3%"]),
        (0.1, 0.1, ["Neither model is better", "mean nothing"], ["12.3%", "45.6%"]),
    ],
)
def test_robust_accuracy_is_told_of_models_that_beat_the_majority_class(
    results, clean_low, adv_low, words, absent
):
    accuracies = {"clean": (clean_low, 0.123), "adv": (adv_low, 0.456)}
    metrics = {
        name: {"clean_accuracy": 0.95, "clean_accuracy_low": low, "robust_accuracy_worst": robust}
        for name, (low, robust) in accuracies.items()
    }
    text = verdict(replace(results, metrics=metrics))
    assert all(word in text for word in words)
    assert not any(word in text for word in absent)

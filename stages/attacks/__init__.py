"""Adversarial attacks and everything else that measures a trained model's robustness."""

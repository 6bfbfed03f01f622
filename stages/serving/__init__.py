"""Trained models in use: model card, prediction on photographs, the served model."""

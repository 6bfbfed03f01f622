"""Trained models in use: model card, prediction on image files, the served model."""

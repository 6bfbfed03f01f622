"""Trained models in use: their evaluation, prediction on image files, the served model."""

"""From tables of predictions to metrics, figures and the report; no model is loaded."""

"""From the tables of attack_eval to metrics, plots and the report; no model is loaded."""

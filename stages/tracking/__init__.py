"""What MLflow is given."""

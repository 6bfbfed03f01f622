"""What is measured of a trained model, each with the table that it writes."""

"""What every other package may rely on: errors, parameters, devices, checkpoints, and the tables that pass between stages."""

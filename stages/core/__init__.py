"""What every other package uses: errors, parameters, devices, checkpoints, tables."""

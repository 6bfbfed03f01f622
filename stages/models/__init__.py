"""The classifier, its weights, and batches of images for it."""

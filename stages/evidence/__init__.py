"""Evidence that others can check: packs of adversarial examples, and the claims made with them."""

"""The diagnostics: one function each, with its record next to it."""

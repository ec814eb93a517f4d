"""Placement: where encodings go in a transformers model. Knows neither a method nor a backend by name."""

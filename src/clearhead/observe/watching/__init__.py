"""Watching a model: where its attention is found, call by call."""

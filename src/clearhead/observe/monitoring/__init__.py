"""Watching a training: every k steps, with alarms, in logs and files."""

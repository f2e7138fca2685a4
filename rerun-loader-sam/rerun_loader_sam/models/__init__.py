"""Checkpoints: which models there are, where their files lie, how they get there, and which one is used."""

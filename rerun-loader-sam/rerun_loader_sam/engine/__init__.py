"""Automatic mask generation for Segment Anything: torch, and nothing of Rerun."""

"""Follows viewers that open images by themselves (0.25 and later) and has those images segmented."""

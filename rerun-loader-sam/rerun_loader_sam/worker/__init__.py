"""The background process that keeps the model in memory, and how a loader hands its work to it."""

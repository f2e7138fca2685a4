"""`rerun-sam`, the command for people."""

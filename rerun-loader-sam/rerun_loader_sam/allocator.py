"""Settings of glibc's allocator for a process that is about to load torch. Standard library only.

By default glibc gives every large buffer back to the system when it is freed and pays for its pages again at the next
operation. The settings are read when a process starts, so whoever starts the worker passes them on.
"""

from collections.abc import Mapping

_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 26),
}


def engine_env(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with the settings added; those that a person has set stay. Other C libraries ignore them."""
    return {**_SETTINGS, **environment}

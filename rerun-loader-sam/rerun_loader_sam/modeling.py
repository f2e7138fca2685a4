"""Imports Meta's model classes without the rest of `segment_anything`."""

import importlib
import importlib.util
import sys
import types

_PACKAGE = "segment_anything"


def import_modeling() -> None:
    """Import `segment_anything.modeling`, so that later imports of it find it.

    Importing the package itself brings in its generator and with that torchvision, which takes as long as torch: two
    seconds that somebody who waits for masks need not spend. Whoever imports it afterwards gets it whole, with the
    same classes.

    Raises ModuleNotFoundError where it is not installed.
    """
    if _PACKAGE in sys.modules:
        return
    spec = importlib.util.find_spec(_PACKAGE)
    package = types.ModuleType(_PACKAGE)
    package.__path__ = list(spec.submodule_search_locations or ()) if spec else []
    sys.modules[_PACKAGE] = package
    try:
        importlib.import_module(f"{_PACKAGE}.modeling")
    finally:
        del sys.modules[_PACKAGE]

"""Meta's classes are imported without what else comes with them, and are the same for whoever wants all of it."""

import subprocess
import sys

PROGRAM = """
import sys
from rerun_loader_sam.segmenter import Segmenter
from rerun_loader_sam.settings import load_settings

segmenter = Segmenter(load_settings({"RERUN_SAM_MODEL": "nano"}))
segmenter.prepare()
loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "torchvision", "segment_anything"})
import segment_anything
from rerun_loader_sam.engine.checkpoint import Sam
assert sys.modules[segment_anything.SamPredictor.__module__].Sam is Sam
print(*loaded, "torchvision" in sys.modules)
"""


def test_torchvision_is_left_to_who_asks_for_it() -> None:
    outcome = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert outcome.stdout.split() == ["segment_anything", "torch", "True"], outcome.stderr

"""The training's modules are a folder of scripts: this makes them importable."""

import sys
from pathlib import Path

TRAINING = Path(__file__).resolve().parents[2] / "training"
sys.path.insert(0, str(TRAINING))

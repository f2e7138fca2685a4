"""`python -m rerun_loader_sam.follow.run_loader`: a loader that takes whatever it is given.

A file that a viewer shows already is not declined: if it is gone by now, or no image, that viewer's log says so.
"""

import sys

from rerun_loader_sam.command import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

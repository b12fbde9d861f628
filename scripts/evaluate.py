"""Sample a model, measure it, and write a report to look at and listen to.

    python scripts/evaluate.py model=RUN_OR_HUB_FOLDER output=REPORT prompts=FILE data.path=LATENTS

All settings with what they mean: configs/evaluate.yaml, docs/evaluation.md.
"""

import sys

from musicgen_train.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))

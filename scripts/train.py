"""Train a MusicGen decoder on a latent dataset; `docs/training.md` says how.

python scripts/train.py data.path=LATENTS init_from=HUB_FOLDER_OR_ID output=RUN trainer.max_steps=1000
"""

import sys

from musicgen_train.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

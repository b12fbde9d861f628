"""Make a latent dataset of captioned audio; every setting is in configs/preprocess.yaml.

python scripts/preprocess.py input=FOLDER output=LATENTS encoders=facebook/musicgen-small clip_seconds=30
python scripts/preprocess.py input=FOLDER output=LATENTS encoders=facebook/musicgen-small dry_run=true
"""

import sys

from musicgen_train.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["preprocess", *sys.argv[1:]]))

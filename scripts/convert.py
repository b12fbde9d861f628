"""Convert MusicGen checkpoints between audiocraft and the Hugging Face hub, mono models to stereo, merge adapters.

python scripts/convert.py from-audiocraft SOURCE OUTPUT
python scripts/convert.py --help
"""

import sys

from musicgen_train.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))

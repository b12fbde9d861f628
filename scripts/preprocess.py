"""Make a latent dataset of captioned audio; every setting is in configs/preprocess.yaml.

python scripts/preprocess.py input=FOLDER output=LATENTS encoders=facebook/musicgen-small clip_seconds=30
python scripts/preprocess.py input=FOLDER output=LATENTS encoders=facebook/musicgen-small dry_run=true
"""

from __future__ import annotations

from musicgen_train.launch import main


def run(config: object) -> object:
    """Import the stage only when it runs, so that --help and mistyped settings answer at once."""
    from omegaconf import DictConfig

    from musicgen_train.preprocess.start import run

    assert isinstance(config, DictConfig)
    return run(config)


if __name__ == "__main__":
    main(run, "preprocess")

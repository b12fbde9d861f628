"""Train a MusicGen decoder on a latent dataset; `docs/training.md` says how.

python scripts/train.py data.path=LATENTS init_from=HUB_FOLDER_OR_ID output=RUN trainer.max_steps=1000
"""

from __future__ import annotations

from musicgen_train.launch import main


def run(config: object) -> object:
    """Import the stage only when it runs, so that --help and mistyped settings answer at once."""
    from omegaconf import DictConfig

    from musicgen_train.training.run import run

    assert isinstance(config, DictConfig)
    return run(config)


if __name__ == "__main__":
    main(run, "train")

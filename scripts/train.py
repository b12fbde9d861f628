"""Train a MusicGen decoder on a latent dataset; `docs/training.md` says how.

python scripts/train.py data.path=LATENTS init_from=HUB_FOLDER_OR_ID output=RUN trainer.max_steps=1000
"""

from musicgen_train.launch import main, stage

if __name__ == "__main__":
    main(stage("musicgen_train.training.run"), config_name="train")

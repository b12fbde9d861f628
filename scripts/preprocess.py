"""Make a latent dataset of captioned audio; every setting is in configs/preprocess.yaml.

python scripts/preprocess.py input=FOLDER output=LATENTS encoders=facebook/musicgen-small clip_seconds=30
python scripts/preprocess.py input=FOLDER output=LATENTS encoders=facebook/musicgen-small dry_run=true
"""

from musicgen_train.launch import main, stage

if __name__ == "__main__":
    main(stage("musicgen_train.preprocess.entry"), config_name="preprocess")

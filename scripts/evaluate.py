"""Sample a model, measure it, and write a report to look at and listen to.

    python scripts/evaluate.py model=RUN_OR_HUB_FOLDER output=REPORT prompts=FILE data.path=LATENTS

All settings with what they mean: configs/evaluate.yaml, docs/evaluation.md.
"""

from musicgen_train.launch import main, stage

if __name__ == "__main__":
    main(stage("musicgen_train.evaluation.run"), config_name="evaluate")

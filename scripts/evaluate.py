"""Sample a model, measure it, and write a report to look at and listen to.

    python scripts/evaluate.py model=RUN_OR_HUB_FOLDER output=REPORT prompts=FILE data.path=LATENTS

All settings with what they mean: configs/evaluate.yaml, docs/evaluation.md.
"""

from __future__ import annotations

from musicgen_train.launch import main


def run(config: object) -> None:
    """Imported here so that a mistyped setting does not wait for torch."""
    from musicgen_train.evaluation.run import run as evaluate

    evaluate(config)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(run, config_name="evaluate")

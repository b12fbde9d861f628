"""From a trained model to a report: sampling, metrics, `results.json` and `report.html`; see `docs/evaluation.md`."""

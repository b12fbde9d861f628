"""Run `scripts/preprocess.py` and time its codec, for `data_speed.py`.

    python scripts/benchmarks/timed_preprocess.py TIMES.json SETTING=VALUE ...

Before the stage begins it imports no more than the script does, so that starting takes as long as for a user.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

from musicgen_train.garbage_collection import lasting_objects
from musicgen_train.launch import main


def run(times_file: Path, config: Any) -> None:
    """Run the stage, and write the seconds from the first batch to the last, after it, and in the codec."""
    from musicgen_train.preprocess.entry import begin

    settings = begin(config)
    with lasting_objects():
        from musicgen_train.preprocess.encoding.encoders import AudioCoder
        from musicgen_train.preprocess.run import preprocess

    encode = AudioCoder.encode
    times: list[tuple[float, float]] = []

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        codes = encode(*arguments)
        times.append((began, time.perf_counter()))
        return codes

    AudioCoder.encode = timed  # type: ignore[method-assign]
    preprocess(settings)
    found = {
        "encoding": times[-1][1] - times[0][0],
        "after": time.perf_counter() - times[-1][1],
        "codec": sum(end - began for began, end in times),
    }
    times_file.write_text(json.dumps(found))


if __name__ == "__main__":
    main(functools.partial(run, Path(sys.argv.pop(1))), "preprocess")

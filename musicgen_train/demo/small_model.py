"""The small model that ships with the package: encoders and decoder as a complete composite in the hub's layout.

`preprocess.py encoders=FOLDER` and `train.py init_from=FOLDER` both take it. Its model card says how it was made and
how good it is; `scripts/demo_model/recipe.py` makes it again.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path

from musicgen_train.files import atomic_folder

SHIPPED = Path(__file__).parent / "shipped"


def demo_encoders(folder: str | os.PathLike[str]) -> Path:
    """Copy the shipped composite to a folder, unless an equal copy is there.

    Args:
        folder: the copy; it appears complete or not at all.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds something else.
        NotADirectoryError: the folder is a file.
    """
    target = Path(folder).expanduser()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; give a folder for the encoders")
    names = sorted(path.name for path in SHIPPED.iterdir() if path.is_file())
    found = sorted(path.name for path in target.iterdir()) if target.exists() else []
    if found == names and not any(filecmp.cmpfiles(SHIPPED, target, names, shallow=False)[1:]):
        return target
    if found:
        listed = ", ".join(found[:5]) + ", ..." * (len(found) > 5)
        raise ValueError(f"{target} already holds something else ({listed}); give another folder")
    with atomic_folder(target) as staging:
        for name in names:
            shutil.copyfile(SHIPPED / name, staging / name)
    return target

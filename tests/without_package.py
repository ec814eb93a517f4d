"""Running code in a process where hf_relpos cannot be imported, as on a machine that never installed it."""

import os
import subprocess
import sys

BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_relpos":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import warnings
warnings.simplefilter("ignore")
"""


def run_python(code, tmp_path, environment=None, block=True):
    """Run ``code`` in a new process with an empty Hugging Face cache under ``tmp_path``; return the finished process."""
    settings = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_MODULES_CACHE": str(tmp_path / "hf_modules"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }
    return subprocess.run(
        [sys.executable, "-c", (BLOCK if block else "") + code],
        capture_output=True,
        text=True,
        env=settings,
        cwd=tmp_path,
        check=False,
    )

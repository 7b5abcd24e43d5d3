"""A JupyterLab of its own for the tests, on a copy of the notebooks.

Nothing of the user's Jupyter is read or written: config, data, runtime, settings and workspaces
lie in a temporary folder, and news, update checks and extension listings are switched off.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    # Every cell is in the page, scrolled to or not.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none", "kernelShutdown": True},
}
# It complains in the console when a notebook is closed before its kernel is up.
_PAGE = {"disabledExtensions": {"@jupyterlab/debugger-extension": True}}
_CONFIG = """
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.news_url = None
c.LabApp.extension_manager = "readonly"
c.LabApp.expose_app_in_browser = True
c.ServerApp.open_browser = False
c.ServerApp.port_retries = 0
c.ServerApp.ip = "127.0.0.1"
c.ServerApp.allow_root = True
"""


@contextmanager
def serving(home: Path) -> Iterator[tuple[str, str, Path]]:
    """Serve a copy of the notebooks from `home`; yields the url, its token and the copy's folder.

    Raises:
        RuntimeError: it does not answer within a minute, with the end of its log.
    """
    folder = home / "notebooks"
    shutil.copytree(NOTEBOOKS, folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder.parent / "mlalab").symlink_to(ROOT / "mlalab")
    for part in ("config/labconfig", "data", "runtime", "settings", "workspaces", "ipython"):
        (home / part).mkdir(parents=True)
    for name, content in (("default_setting_overrides", _SETTINGS), ("page_config", _PAGE)):
        path = home / f"config/labconfig/{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
    (home / "config/jupyter_lab_config.py").write_text(_CONFIG, encoding="utf-8")
    port, token = _free_port(), secrets.token_hex(16)
    command = [
        *(sys.executable, "-m", "jupyterlab", f"--port={port}"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"),
    ]
    url = f"http://127.0.0.1:{port}"
    with (home / "log").open("w+") as log:
        server = subprocess.Popen(command, env=_environment(home), stdout=log, stderr=log)
        try:
            _wait(server, f"{url}/api/status?token={token}", home / "log")
            yield url, token, folder
        finally:
            server.terminate()
            server.wait(timeout=30)


def _environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels"))),
        "MLALAB_LIVE": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(600):
        if server.poll() is None:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                return
            except urllib.error.URLError:
                time.sleep(0.1)
        else:
            break
    raise RuntimeError(f"JupyterLab does not answer:\n{log.read_text()[-2000:]}")

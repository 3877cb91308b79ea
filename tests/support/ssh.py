"""Ssh: a real server to log in to, without a port: the client starts it for itself, and speaks to it by pipes."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["log_in"]

_SBIN = "/usr/sbin:/usr/local/sbin"
_SERVER = """
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
StrictModes no
UsePAM no
PermitRootLogin yes
"""


def log_in(folder: Path) -> tuple[str, ...]:
    """Return the command that runs what follows it after logging in by ssh; keys are made in ``folder``."""
    server = shutil.which("sshd") or shutil.which("sshd", path=_SBIN)
    if server is None or shutil.which("ssh") is None:
        pytest.skip("no ssh and sshd here: they are in the packages openssh-client and openssh-server")
    try:
        Path("/run/sshd").mkdir(exist_ok=True)  # The server insists on it, empty, for its unprivileged part.
    except PermissionError:
        pytest.skip("sshd has no /run/sshd here, and only root can make it")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "server").write_text(_SERVER.format(folder=folder))
    served = shlex.join([server, "-i", "-f", f"{folder}/server", "-E", f"{folder}/log"])
    options = {
        "ProxyCommand": served,
        "IdentityFile": f"{folder}/user",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
    }
    given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ("ssh", "-F", "none", *given, "there")

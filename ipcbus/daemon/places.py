"""Where the daemon's files lie."""

from __future__ import annotations

import warnings

from ..protocol.addresses import SYSTEM_RUNTIME_DIR

SYSTEM_CONFIG_DIR = "/etc/ipcbus"
#: What packages ship lies in the second; a file of the same name in the first takes its place.
SYSTEM_POLICY_DIRS = (f"{SYSTEM_CONFIG_DIR}/policy.d", "/usr/lib/ipcbus/policy.d")
CONFIG_NAME, POLICY_NAME = "ipcbusd.toml", "policy.toml"


class PlaceError(Exception):
    """A file or directory that the daemon does not trust or cannot use; the text says why and what to do."""


def runtime_dir(kind: str) -> str:
    """The directory of sockets and secrets of buses of this *kind*; it need not exist. For the user's clients work it out in the same way.

    Raises PlaceError.
    """
    if kind == "system":
        return SYSTEM_RUNTIME_DIR
    import platformdirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set; the place it then names is checked below
        try:
            return platformdirs.user_runtime_dir("ipcbus", appauthor=False)
        except PermissionError as error:  # where it would fall back on a directory in /tmp that somebody else made
            raise PlaceError(str(error)) from error


def config_dir(kind: str) -> str:
    """Where the configuration and the policy of a bus of this *kind* lie, if there are any."""
    if kind == "system":
        return SYSTEM_CONFIG_DIR
    import platformdirs

    return platformdirs.user_config_dir("ipcbus", appauthor=False)

"""``ipcbus demo``: a private bus, real figures of this machine on it, and a SIGKILL of the daemon in the middle."""

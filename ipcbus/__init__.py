"""ipcbus: a message bus for the programs of one machine. Programs talk to it with ``ipcbus_client``."""

__version__ = "0.1.0"

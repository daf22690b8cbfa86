"""Layer 3: ``ipcbusd`` and ``ipcbus``, what a person types."""

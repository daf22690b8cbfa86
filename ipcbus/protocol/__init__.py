"""Layer 0: the wire (see PROTOCOL.md). Bytes in, events out; no sockets, no clock, no threads, no randomness."""

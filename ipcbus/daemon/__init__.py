"""Layer 2: the only sockets of the bus. Moves bytes between connections and the broker's records, and decides nothing about messages."""

"""How deep hop 1 resolves: where, from which layer on and in which form an entity can be read."""

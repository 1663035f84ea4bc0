"""Optimizers, one module per family; each module registers what it adds (`optim.api`)."""

"""Training: ``fit`` builds the Trainer, and a ``Run`` is what it leaves."""

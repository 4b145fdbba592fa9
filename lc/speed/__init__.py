"""Time and cost: what regions save, measured against the fastest dense form."""

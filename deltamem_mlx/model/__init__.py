"""How a model gets a memory: projections, caches, corrected attention, and the patch itself."""

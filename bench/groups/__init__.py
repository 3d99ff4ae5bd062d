"""Groups of figures: each module has one function ``measure``, which takes a run and returns its figures."""

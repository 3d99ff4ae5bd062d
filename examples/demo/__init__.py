"""`make demo`: the main job of ModelBox end to end, on real processes, with every claim checked."""

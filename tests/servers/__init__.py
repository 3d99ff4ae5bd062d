"""Real servers that tests start by themselves: in temporary directories, on free ports, with nothing to install."""

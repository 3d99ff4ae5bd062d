"""Who may call what: the one table of all calls and routes, and the gate that every one of them passes."""

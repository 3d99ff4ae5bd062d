"""The model loader: from a reference to a session that answers, and from one version to the next without a failed call.

Fetches, verifies and caches the files of a version, opens them and swaps them in. Talks to the server only through
`modelbox.ports.ModelSource`, and knows no transport and no telemetry.
"""

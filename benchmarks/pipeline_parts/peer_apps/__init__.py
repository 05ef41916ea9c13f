"""The same service on other job queues; runs in their environment below ``.venv-peers``, not in ours."""

"""The real llama.cpp HTTP server, from the wheel ``xllamacpp``, as a process of its own.

Prints ``LISTEN <url>`` once it answers; SIGTERM and SIGINT end it at once, streams or not.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

STOP = {signal.SIGTERM, signal.SIGINT}


def main() -> None:
    """Serve one model until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--context", type=int, default=8192, help="tokens of all slots together")
    parser.add_argument("--sleep-idle-seconds", type=int, default=-1)
    parser.add_argument("--api-key")
    parser.add_argument("--no-slots", action="store_true")
    parser.add_argument("--no-metrics", action="store_true")
    parser.add_argument("--embeddings", action="store_true", help="serve these, and nothing else")
    given = parser.parse_args()
    # Threads inherit the mask: blocked before llama.cpp starts any, the signals stay for sigwait().
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = given.model
    params.model_alias = {given.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = given.port
    params.n_parallel = given.slots
    params.n_ctx = given.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.sleep_idle_seconds = given.sleep_idle_seconds
    params.endpoint_props = True
    params.endpoint_slots = not given.no_slots
    params.endpoint_metrics = not given.no_metrics
    params.warmup = params.ui = params.fit_params = False
    params.cache_ram_mib = 0
    if given.embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if given.api_key:
        params.api_keys = [given.api_key]
    server = xllamacpp.Server(params)
    sys.stdout.write(f"LISTEN {server.listening_address}\n")
    sys.stdout.flush()
    signal.sigwait(STOP)
    os._exit(0)  # deleting the server would wait up to 30 s for an open stream


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Start a command as several processes of one job on this machine, with torchrun's variables: where there is neither torchrun nor MPI.

Usage:   launch.py N COMMAND..
Output:  what the processes print; exit status that of the first that failed. The others are ended 20 s after it.
Needs:   Python alone. Processes meet over TCP on this machine (FUSEDPO_COMM_ADDRESS).
"""

import os
import socket
import subprocess
import sys
import time

PATIENCE = 20  # seconds that the others have once one has failed: they hear of it, and say so


def main():
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal() or int(sys.argv[1]) < 1:
        sys.exit(__doc__)
    size, command = sys.argv[1], sys.argv[2:]
    with socket.socket() as door:  # a port that is free just now
        door.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{door.getsockname()[1]}"
    common = {**os.environ, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "FUSEDPO_COMM_ADDRESS": address}
    all = [subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(int(size))]
    first = 0
    while any(process.poll() is None for process in all):
        failed = [process.poll() for process in all if process.poll()]
        if failed and not first:
            first, end = failed[0], time.monotonic() + PATIENCE
        if first and time.monotonic() > end:
            for process in all:
                process.kill()
        time.sleep(0.05)
    first = first or next((process.returncode for process in all if process.returncode), 0)
    sys.exit(first if first >= 0 else 128 - first)


if __name__ == "__main__":
    main()

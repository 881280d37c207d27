#!/usr/bin/env python3
"""Start a command as several processes of one job on this machine, with torchrun's variables: where there is neither torchrun nor MPI.

Usage:   launch.py N COMMAND..
Output:  what the processes print; exit status that of the first that failed.
Needs:   Python alone. Processes meet over TCP on this machine (FUSEDPO_COMM_ADDRESS).
"""

import os
import socket
import subprocess
import sys


def main():
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal() or int(sys.argv[1]) < 1:
        sys.exit(__doc__)
    size, command = sys.argv[1], sys.argv[2:]
    with socket.socket() as door:  # a port that is free just now
        door.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{door.getsockname()[1]}"
    common = {**os.environ, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "FUSEDPO_COMM_ADDRESS": address}
    all = [subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(int(size))]
    ended = [process.wait() for process in all]
    sys.exit(next((status if status > 0 else 128 - status for status in ended if status), 0))


if __name__ == "__main__":
    main()

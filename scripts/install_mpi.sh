#!/bin/sh
# Open MPI and MPICH side by side, by Debian's names, for the tests of several processes (tests/ranks): each where it is not there yet.
#   scripts/install_mpi.sh
# Fails never: what cannot be installed is said, and its tests are skipped. Takes 10 minutes at most, however slow the mirror.
set -u
apt() { DEBIAN_FRONTEND=noninteractive timeout "$1" apt-get -qq -o DPkg::Lock::Timeout=60 -o Acquire::Retries=1 "$2" ${3:+-y --no-install-recommends "$3"} >/dev/null; }
skip() { echo "skipped: tests of several processes under $1, which is not installed ($2)"; }
asked=
for mpi in openmpi mpich; do
    command -v "mpirun.$mpi" >/dev/null && continue
    if ! command -v apt-get >/dev/null; then skip "mpirun.$mpi" "there is no apt-get"; continue; fi
    if [ "$(id -u)" != 0 ]; then skip "mpirun.$mpi" "only root may install it"; continue; fi
    # Lists that cannot be fetched are not the end: older ones may do.
    [ "$asked" ] || apt 120 update
    asked=yes
    package=$mpi
    [ "$mpi" = openmpi ] && package=openmpi-bin
    if apt 240 install "$package" && command -v "mpirun.$mpi" >/dev/null; then
        echo "installed: mpirun.$mpi"
    else
        skip "mpirun.$mpi" "apt-get could not install it"
    fi
done
exit 0

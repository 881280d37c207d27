"""scripts/install_mpi.sh on machines that are made up: with and without apt-get, root, a network, one MPI or both."""

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/install_mpi.sh"


class InstallTest(unittest.TestCase):
    def run_on(self, uid=0, there=(), apt=None):
        """(exit status, lines, what apt-get was asked for) where `there` are installed and apt-get does as the shell text `apt` says."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        tools = Path(folder.name)
        for name in ("sh", "timeout"):
            (tools / name).symlink_to(shutil.which(name))

        def program(name, text):
            (tools / name).write_text(f"#!/bin/sh\n{text}\n")
            (tools / name).chmod(0o755)

        program("id", f"echo {uid}")
        for name in there:
            program(f"mpirun.{name}", "exit 0")
        if apt is not None:
            here = f'tools="{tools}"; echo "$@" >>"$tools/asked"; for last in "$@"; do :; done'
            made = 'put() { printf "#!/bin/sh\\n" >"$tools/mpirun.$1"; /bin/chmod +x "$tools/mpirun.$1"; }'
            program("apt-get", f"{here}\n{made}\n{apt}")
        ran = subprocess.run([str(SCRIPT)], capture_output=True, text=True, env={"PATH": str(tools)}, timeout=60)
        asked = tools / "asked"
        return ran.returncode, ran.stdout.splitlines(), asked.read_text().splitlines() if asked.exists() else []

    def skipped(self, mpi, why):
        return f"skipped: tests of several processes under mpirun.{mpi}, which is not installed ({why})"

    def test_what_is_there_is_not_installed(self):
        self.assertEqual(self.run_on(there=["openmpi", "mpich"], apt="exit 1"), (0, [], []))

    def test_both_are_installed_by_one_list(self):
        install = 'case $last in update) ;; openmpi-bin) put openmpi;; *) put "$last";; esac'
        status, said, asked = self.run_on(apt=install)
        self.assertEqual((status, said), (0, ["installed: mpirun.openmpi", "installed: mpirun.mpich"]))
        self.assertEqual([line.split()[-1] for line in asked], ["update", "openmpi-bin", "mpich"])
        self.assertTrue(all("--no-install-recommends" in line and " -y " in line for line in asked[1:]))

    def test_nothing_fails_and_what_is_missing_is_said(self):
        both = lambda why: [self.skipped(mpi, why) for mpi in ("openmpi", "mpich")]
        self.assertEqual(self.run_on(), (0, both("there is no apt-get"), []))
        self.assertEqual(self.run_on(uid=1000, apt="exit 0"), (0, both("only root may install it"), []))
        failed = "apt-get could not install it"
        self.assertEqual(self.run_on(apt="exit 100")[:2], (0, both(failed)))
        self.assertEqual(self.run_on(apt="exit 0")[:2], (0, both(failed)), "it says it did, and nothing is there")
        # One of them is not in the lists; these are old, as no network was there.
        one = 'case $last in mpich) put mpich;; *) echo "E: Unable to locate package $last" >&2; exit 100;; esac'
        self.assertEqual(self.run_on(apt=one)[:2], (0, [self.skipped("openmpi", failed), "installed: mpirun.mpich"]))
        self.assertEqual(self.run_on(there=["mpich"], apt=one)[:2], (0, [self.skipped("openmpi", failed)]))

    def test_ci_goes_on(self):
        text = (ROOT / ".ci/run").read_text()
        self.assertIn("\nscripts/install_mpi.sh\n", text)
        self.assertEqual(os.access(SCRIPT, os.X_OK), True)


if __name__ == "__main__":
    unittest.main()

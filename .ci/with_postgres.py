"""Run a command beside a PostgreSQL server of its own, whose URL is in AUTODIFFUSION_TEST_SERVER."""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from peers.postgres import running_server  # it is beside the tests

if __name__ == "__main__":
    with running_server() as server:
        environment = os.environ | {"AUTODIFFUSION_TEST_SERVER": server.url}
        code = subprocess.run(sys.argv[1:], env=environment).returncode
    sys.exit(code)

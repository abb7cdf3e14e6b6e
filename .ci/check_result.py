"""Fail unless ``verify STUDY`` finds the best candidate at or below a share of the uniform baseline."""

import json
import subprocess
import sys

study, limit = sys.argv[1], float(sys.argv[2])
command = ["autodiffusion-opt", "verify", study, "--images", "2000", "--repeats", "2", "--json"]
verified = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
best, uniform = verified["best"]["mean"], verified["baselines"]["leading"]["mean"]
print(f"{study}: best {best:.2f}, uniform {uniform:.2f}, share {best / uniform:.3f}, at most {limit}")
sys.exit(best > limit * uniform)

"""Fail unless ``verify STUDY`` finds the best candidate at or below a share of what the pipeline does by itself."""

import json
import subprocess
import sys

study, limit = sys.argv[1], float(sys.argv[2])
command = ["autodiffusion-opt", "verify", study, "--images", "2000", "--repeats", "2", "--json"]
verified = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
best, own = verified["best"]["mean"], verified["baselines"]["own"]["mean"]
print(f"{study}: best {best:.2f}, own {own:.2f}, share {best / own:.3f}, at most {limit}")
sys.exit(best > limit * own)

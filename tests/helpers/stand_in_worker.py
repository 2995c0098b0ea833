"""A worker that trains nothing and needs no torch: what a job's name says is what happens to it."""

import json
import os
import signal
import sys
import time

shared = json.loads(sys.stdin.readline())
for line in sys.stdin:
    job = json.loads(line)
    if job is None:
        sys.exit(0)
    what = job["name"]
    print(json.dumps({"log": ["cmrhash.evaluation.worker", 30, f"about {what}"]}), flush=True)
    if what == "dies":  # once the one that waits has said so
        for _ in range(100):
            time.sleep(0.05)
            if os.path.exists(job["out"] + "/waiting"):
                time.sleep(0.2)
                break
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "fails":
        error = {"kind": "DataError", "parts": ["no good", "there", "mend it"], "option": "lr"}
        print(json.dumps({"error": error}), flush=True)
        continue
    if what == "breaks":
        print(json.dumps({"error": {"kind": "ValueError", "parts": ["x"]}}), flush=True)
        continue
    if what == "waits":
        print(json.dumps({"done": 1, "total": 9, "note": ""}), flush=True)
        open(job["out"] + "/waiting", "w").close()
        sys.stdin.read()  # until the other process closes it
        with open(job["out"] + "/saved", "w"):
            sys.exit(130)
    print(json.dumps({"done": 2, "total": 2, "note": what}), flush=True)
    time.sleep(0.05)
    print(json.dumps({"finished": job["out"]}), flush=True)

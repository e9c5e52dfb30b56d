#!/usr/bin/env python3
"""A stage in Python: the longest tokens of a tokenizer, as a text file. `io: files` leaves the store to smelt."""
import json, pathlib, sys

if sys.argv[1] == "describe":
    print(json.dumps({
        "protocol": 1, "name": "longest_tokens", "version": 1, "about": "Lists the longest tokens of a tokenizer",
        "io": "files",
        "inputs": [{"name": "tokenizer", "kind": "tokenizer@1.0"}],
        "outputs": [{"name": "listing", "kind": "listing@1.0"}],
        "config": {"type": "object", "additionalProperties": False, "properties": {
            "count": {"type": "integer", "minimum": 1, "default": 20}}},
    }))
else:
    job = json.load(open(sys.argv[2]))
    path = next(p for p in job["inputs"]["tokenizer"][0] if p.endswith("tokenizer.json"))
    vocabulary = json.load(open(path))["model"]["vocab"]
    longest = sorted(vocabulary, key=lambda t: (-len(t), t))[: job["config"]["count"]]
    listing = pathlib.Path(job["outputs"]["listing"], "longest.txt")
    listing.write_text("".join(t + "\n" for t in longest), encoding="utf-8")
    dropped = {"shorter": len(vocabulary) - len(longest)}
    print(json.dumps({"type": "books", "read": len(vocabulary), "written": len(longest), "dropped": dropped}))

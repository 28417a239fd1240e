"""Changes files of a checkpoint as a forger would: the manifest has the size and hash of what is there then."""

import hashlib
import json

from mindpangu.checkpoint.manifest import encode_manifest
from mindpangu.config import load_saved_config, to_yaml


def write_signed(checkpoint, name, data):
    """Writes a file of a checkpoint, and its size and hash into the manifest."""
    (checkpoint / name).write_bytes(data)
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_bytes())
    entry = {"bytes": len(data), "blake2b": hashlib.blake2b(data, digest_size=16).hexdigest()}
    path.write_bytes(encode_manifest(manifest["step"], manifest["files"] | {name: entry}))


def forge_config(checkpoint, overrides):
    """Changes keys of a checkpoint's configuration."""
    config = load_saved_config(checkpoint / "config.yaml", overrides)
    write_signed(checkpoint, "config.yaml", to_yaml(config).encode())

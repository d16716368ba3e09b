"""Files in and out; every writer is complete or leaves nothing. Public names: `v3d_core`."""

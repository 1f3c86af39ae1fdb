"""The CRI v1 front: `serve` starts the daemon, the two `*_service` modules answer gRPC, the rest is what they work with."""

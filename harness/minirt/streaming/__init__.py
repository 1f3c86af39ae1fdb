"""Streams: exec, attach and port-forward over a connection that a client upgrades from HTTP.

A call of the CRI answers a URL with a one-time token (`tokens`); who asks for it over HTTP (`server`, `upgrade`) gets
streams, over SPDY/3.1 (`dictionary`, `frames`, `spdy`). `command` carries the streams of a process, `process` is what is
at their other end, `status` the last word on them. Nothing but `server` and `tokens` is loaded before the first stream.
"""

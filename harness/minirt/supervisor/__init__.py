"""The supervisor: a small single-threaded process that starts containers, holds their stdio, writes their logs, reaps them.

It outlives the daemon, which talks to it over ``<state>/supervisor.sock`` (`protocol`, `client`) and starts it before it
imports anything heavy (`start`). Modules of this package, `client` aside, are loaded into the supervisor and therefore
import next to nothing: `loop` waits, `server` answers, `container`, `execution` and `pod` are what it looks after, `log` is
where output goes.
"""

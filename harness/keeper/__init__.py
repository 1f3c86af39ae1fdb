"""The keeper: the small process that holds an arena's namespaces, starts what runs in it, and takes it down.

Runs by itself (``python -I -S``), from the standard library and `harness.linux` only, so that it is small and forks fast.
`harness.arena` talks to it.
"""

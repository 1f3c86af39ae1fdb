"""Clients: one module for each way to talk to a runtime, all with the verbs of `harness.client.verbs`."""

"""Put a subject to sea and take it through its steps: the one place where client, postcondition and meter meet."""

from harness.session.step import Recorder, Stepper
from harness.session.trial import Trial, open_trial
from harness.session.turns import take_turns
from harness.session.witness import Witness

__all__ = ["Recorder", "Stepper", "Trial", "Witness", "open_trial", "take_turns"]

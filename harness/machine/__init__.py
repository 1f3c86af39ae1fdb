"""The machine of a trial: what it is, what it has, what it lacks, and how to mend that."""

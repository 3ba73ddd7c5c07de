"""Everything that the learner host runs."""

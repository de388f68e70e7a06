"""Should we retrain, can we, and is the candidate better."""

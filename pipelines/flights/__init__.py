"""Will this flight arrive more than 15 minutes late? Real flights out of New York in 2013."""

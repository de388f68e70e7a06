"""Will this order be sent back? A made-up shop: put your own events, features and contract in its place."""

"""What lives on the card, and when."""

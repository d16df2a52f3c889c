"""What a card does with the usual work, beside what others have published of such cards."""

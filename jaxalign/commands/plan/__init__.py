"""What a program needs on hardware that is not here."""

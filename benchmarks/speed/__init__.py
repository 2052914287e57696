"""Speed: mlpot against its peers, one process at a time, in turns. See README.md here."""

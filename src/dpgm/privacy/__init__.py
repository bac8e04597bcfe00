"""What a privacy promise is: guarantee, price, ledger and the one door to the rows. No torch here."""

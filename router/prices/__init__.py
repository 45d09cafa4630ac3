"""The price book: prices and exchange rates as data, and what calls cost by them."""

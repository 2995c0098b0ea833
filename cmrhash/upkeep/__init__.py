"""What lies in cache and runs, whether it is whole, what may go; and what the machine is."""

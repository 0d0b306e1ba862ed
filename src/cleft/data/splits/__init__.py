"""From records to training, validation and test, patients apart."""

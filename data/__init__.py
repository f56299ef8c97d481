"""Reading image sets from files, and the batches that go to the device."""

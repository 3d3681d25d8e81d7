"""The paper's experiments as values, and how one is run, resumed and written up."""

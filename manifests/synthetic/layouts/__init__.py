"""The generated world written in each data set's official layout."""

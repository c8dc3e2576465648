"""Worlds and logs in the forms that other libraries take."""

"""Part of lrtrain."""

"""Real servers that tests start by themselves: databases and blob stores."""

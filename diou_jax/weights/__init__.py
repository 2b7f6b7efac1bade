"""Weight files of other repositories: read, recognised, and mapped to our variables and back."""

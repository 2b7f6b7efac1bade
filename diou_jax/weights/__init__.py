"""Weight files of other repositories: read, recognised, imported and exported."""
